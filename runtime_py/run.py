"""Generate text with a package: `python -m runtime_py.run PACKAGE [--prompt TEXT | --chat]`."""

from __future__ import annotations

from o2o.cli import interrupt

if __name__ == "__main__":
    interrupt.exit_on_interrupt("run")  # before the slow imports

import argparse
import io
import secrets
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING

from o2o.cli.arguments import Parser, number_list, positive_int
from o2o.cli.command import report, run
from o2o.cli.interrupt import INTERRUPTED
from o2o.errors import UsageError
from runtime_py.engine_flags import add_engine_flags, options_from

if TYPE_CHECKING:
    from runtime_py.benchmark.timing import Stats
    from runtime_py.generation.generate import GenerationOptions
    from runtime_py.package import Package

DEFAULT_PROMPT = "Lily picked up a flower."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code: 0; 1 for a package that cannot be run; 2 for wrong usage or a long prompt; 130 for
        SIGINT.
    """
    argv = sys.argv[1:] if argv is None else argv
    return run("run", lambda: _run(_parser().parse_args(argv)), debug="--debug" in argv)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m runtime_py.run",
        description="Continue a prompt with the model of a package, or chat with it.",
    )
    add = parser.add_argument
    add(
        "package",
        metavar="PACKAGE",
        help="folder with a tokenizer and model.circle, model.tflite or model.onnx; or a model file",
    )
    add("--tokenizer", metavar="DIR", help="folder of the tokenizer (default: the folder of the model)")
    add("--prompt", metavar="TEXT", type=_text, help=f"text to continue (default: {DEFAULT_PROMPT})")
    add("--stream", action="store_true", help="print the text while it is generated, then the token ids")
    add("--stats", action="store_true", help="report the engine, speed and memory on stderr")
    add_engine_flags(parser)
    add(
        "--buckets",
        metavar="A,B",
        type=number_list,
        help="extra KV-cache capacities to build decode graphs for (LiteRT); '' for none "
        "(default: 256,512,... below the model's capacity)",
    )
    add(
        "--no-cache",
        action="store_true",
        help="do not store prepared artifacts of large models in the disk cache",
    )
    add("--debug", action="store_true", help="show the engine's log, and tracebacks")

    chat = parser.add_argument_group("chat").add_argument
    chat(
        "--chat",
        action="store_true",
        help="chat by the checkpoint's template: read one message from each line of stdin, or from --prompt",
    )
    chat("--system", metavar="TEXT", type=_text, help="system message")

    stop = parser.add_argument_group("when to stop, in addition to the end-of-sequence token").add_argument
    stop("--max-new-tokens", metavar="N", type=positive_int, help="default: until the context is full")
    stop("--stop", metavar="TEXT", type=_text, action="append", default=[], help="stop string; repeatable")
    stop(
        "--stop-token",
        metavar="ID,ID",
        type=number_list,
        action="extend",
        default=[],
        help="stop token ids; repeatable",
    )

    sample = parser.add_argument_group("sampling (default: greedy decoding)").add_argument
    sample(
        "--temperature",
        metavar="X",
        type=float,
        help="divide the logits by X; 0 is greedy (default: 1 with another sampling option, else 0)",
    )
    sample("--top-k", metavar="N", type=int, help="sample from the N most likely tokens")
    sample(
        "--top-p",
        metavar="X",
        type=float,
        help="sample from the smallest set of most likely tokens with total probability X",
    )
    sample("--min-p", metavar="X", type=float, help="drop tokens below X times the highest probability")
    sample("--seed", metavar="N", type=int, help="seed of the random numbers, to repeat a text")
    sample(
        "--repetition-penalty",
        metavar="X",
        type=float,
        default=1.0,
        help="penalize tokens already in the text (default: %(default)s, none)",
    )
    return parser


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("the text is not UTF-8") from None
    return text


def _run(args: argparse.Namespace) -> int:
    # Imported late, so that --help is fast.
    from runtime_py.benchmark.timing import Stats
    from runtime_py.package import Package

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may lack some characters
    if args.system is not None and not args.chat:
        raise UsageError("--system needs --chat")
    options = _options(args)
    stats = Stats()
    package = Package.load(args.package, args.tokenizer, options_from(args, _log))
    if not args.tokenizer and package.model.parent.resolve() != package.directory.resolve():
        _log(f"{package.directory} has no model: using {package.model}")
    with package:
        conversation = package.chat(args.system, **options) if args.chat else None
        prompt = package.tokenizer.encode(DEFAULT_PROMPT if args.prompt is None else args.prompt)
        _ = package.session  # loads the model
        stats.loaded()
        if args.stats and package.loaded is not None:
            print(f"engine:  {package.loaded.description}", file=sys.stderr)
        if conversation is None:
            return _continue(package, prompt, args, options, stats)
        from runtime_py.repl import chat_loop

        return chat_loop(conversation, args.prompt, stats if args.stats else None, _log)


def _options(args: argparse.Namespace) -> GenerationOptions:
    """Raises UsageError for numbers out of range."""
    from runtime_py.generation.sampling import Sampling

    sampling = Sampling(**{option.name: getattr(args, option.name) for option in fields(Sampling)})
    if sampling.draws and sampling.seed is None:
        sampling = replace(sampling, seed=secrets.randbits(32))
        if args.stats:
            _log(f"--seed {sampling.seed} repeats this text")
    return {
        "max_new_tokens": args.max_new_tokens,
        "stop": args.stop,
        "stop_tokens": args.stop_token,
        "sampling": sampling,
    }


def _continue(
    package: Package,
    prompt: Sequence[int],
    args: argparse.Namespace,
    options: GenerationOptions,
    stats: Stats,
) -> int:
    """Print the continuation of the prompt. SIGINT ends the text, and the text so far is printed."""
    header = f"prompt: {DEFAULT_PROMPT if args.prompt is None else args.prompt}\n"
    ids: list[int] = []
    text, finish, code = "", None, 0
    tokens = package.stream(prompt, **options)
    stats.begin()
    try:
        for token in tokens:
            stats.token()
            if args.stream:
                if not ids:
                    _print(f"{header}detokenized: ")
                _print(token.text)
            ids.append(token.id)
            text += token.text
            finish = token.finish
    except KeyboardInterrupt:
        if not ids:
            raise
        code = INTERRUPTED
    generated = f"generated: {{ {', '.join(map(str, ids))} }}\n"
    if args.stream:
        _print(f"\n{generated}")
    else:
        _print(f"{header}{generated}detokenized: {text}\n")
    if finish == "capacity":
        _log(package.session.context_full_message)
    if args.stats:
        print(stats.report(package.session.runs), file=sys.stderr)
    return code


def _log(message: str) -> None:
    report("run", message)


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
