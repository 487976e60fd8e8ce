"""Generate text with a package: `o2o run PACKAGE [--prompt TEXT | --chat]`."""

from __future__ import annotations

from o2o.cli import interrupt

if __name__ == "__main__":
    interrupt.exit_on_interrupt("run")  # before the slow imports

import argparse
import io
import json
import math
import secrets
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from o2o.cli.arguments import Parser, number_list, utf8_text
from o2o.cli.command import report, run
from o2o.cli.interrupt import INTERRUPTED
from o2o.errors import UsageError
from runtime_py.chat_flags import add_chat_flags, chat_options
from runtime_py.engine_flags import add_engine_flags, options_from
from runtime_py.generation_flags import add_generation_flags, generation_options

if TYPE_CHECKING:
    from runtime_py.benchmark.timing import Stats
    from runtime_py.generation.generate import GenerationOptions, Token
    from runtime_py.generation.session import Session
    from runtime_py.package import Package
    from runtime_py.text.tokenizer import Tokenizer

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
    return run("run", lambda: execute(parser().parse_args(argv)), debug="--debug" in argv)


def parser() -> Parser:
    """Make the command line's parser.

    Returns:
        The parser.
    """
    parser = Parser(
        prog="python -m runtime_py.run",
        description="Continue a prompt with the model of a package, or chat with it.",
        examples=[
            'o2o run my-package --prompt "Once upon a time" --stream --stats',
            'o2o run my-package --prompt "Once upon a time" --temperature 0.8 --top-p 0.9 --seed 7',
        ],
    )
    add = parser.add_argument
    add(
        "package",
        metavar="PACKAGE",
        help="folder with a tokenizer and model.circle, model.tflite or model.onnx; or a model file, such as "
        "model.litertlm",
    )
    add(
        "--tokenizer",
        metavar="DIR",
        help="folder of the tokenizer (default: the folder of the model); or ids: texts are token ids",
    )
    add("--prompt", metavar="TEXT", type=utf8_text, help=f"text to continue (default: {DEFAULT_PROMPT})")
    add("--stream", action="store_true", help="print the text while it is generated, then the token ids")
    add(
        "--log-probabilities",
        metavar="N",
        type=int,
        help="then print a JSON line for each token: its log-probability, and the N most likely tokens",
    )
    add("--stats", action="store_true", help="report the engine, speed and memory on stderr")
    add_engine_flags(parser)
    add(
        "--buckets",
        metavar="A,B",
        type=number_list,
        help="extra KV-cache capacities to build decode graphs for (LiteRT); '' for none "
        "(default: 256,512,768,1024,1536,... below the model's capacity)",
    )
    add(
        "--speculate",
        choices=("auto", "on", "off"),
        default="auto",
        help="draft tokens by prompt lookup, and verify several in one run. Auto: where that is faster and "
        "the text is the same. On: also where rounding may change the text",
    )
    add(
        "--no-cache",
        action="store_true",
        help="store nothing in the disk cache, and so measure no engines",
    )
    add(
        "--self-test",
        action="store_true",
        help="check the engine with the known answers of the package; generates only with --prompt or --chat",
    )
    add("--debug", action="store_true", help="show the engine's log, and tracebacks")

    add_chat_flags(parser)
    add_generation_flags(parser)
    return parser


def execute(args: argparse.Namespace) -> int:
    """Run what the command line describes.

    Args:
        args: The parsed command line.

    Returns:
        The exit code.

    Raises:
        ModelError: The package cannot be run.
        UsageError: Options exclude each other, or the prompt is too long.
    """
    # Imported late, so that --help is fast.
    from runtime_py.benchmark.timing import Stats
    from runtime_py.package import Package

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may lack some characters
    chat = chat_options(args)
    options = generation_options(args)
    if args.chat and args.log_probabilities is not None:
        raise UsageError("--log-probabilities does not go with --chat")
    stats = Stats()
    package = Package.load(args.package, args.tokenizer, options_from(args, _log), self_test=args.self_test)
    if args.self_test and args.prompt is None and not args.chat:
        print(package.self_test())
        return 0
    folder = package.directory
    if not args.tokenizer and isinstance(folder, Path) and package.model.parent.resolve() != folder.resolve():
        _log(f"{package.directory} has no model: using {package.model}")
    with package, _warnings_as_log_lines():
        options = _with_seed(options, package, args.stats)
        conversation = package.chat(**chat, **options) if args.chat else None
        prompt = package.tokenizer.encode(DEFAULT_PROMPT if args.prompt is None else args.prompt)
        session = conversation.session if conversation else package.session()  # loads the model
        stats.loaded()
        if package.tested is not None:
            _log(str(package.tested))
        if args.stats and package.loaded is not None:
            print(f"engine:  {package.loaded.description}", file=sys.stderr)
        if conversation is None:
            return _continue(package, session, prompt, args, options, stats)
        from runtime_py.repl import chat_loop

        return chat_loop(conversation, args.prompt, stats if args.stats else None, _log)


@contextmanager
def _warnings_as_log_lines() -> Iterator[None]:
    from runtime_py.generation.generation_config import UnsupportedSettingWarning

    with warnings.catch_warnings():
        warnings.simplefilter("always", UnsupportedSettingWarning)
        warnings.showwarning = lambda message, *_, **__: _log(str(message))
        yield


def _with_seed(options: GenerationOptions, package: Package, stats: bool) -> GenerationOptions:
    """Give texts that are drawn at random a seed, which --stats reports."""
    from runtime_py.generation.sampling import Sampling

    sampling = options.get("sampling") or Sampling()
    if sampling.seed is None and sampling.over(package.generation_config.sampling).draws:
        options["sampling"] = sampling = replace(sampling, seed=secrets.randbits(32))
        if stats:
            _log(f"--seed {sampling.seed} repeats this text")
    return options


def _continue(
    package: Package,
    session: Session,
    prompt: Sequence[int],
    args: argparse.Namespace,
    options: GenerationOptions,
    stats: Stats,
) -> int:
    """Print the continuation of the prompt. SIGINT ends the text, and the text so far is printed."""
    header = f"prompt: {DEFAULT_PROMPT if args.prompt is None else args.prompt}\n"
    ids: list[int] = []
    lines: list[str] = []
    text, finish, code = "", None, 0
    tokens = package.stream(prompt, session, **options)
    stats.begin()
    try:
        for token in tokens:
            stats.token()
            if args.stream:
                if not ids:
                    _print(f"{header}detokenized: ")
                _print(token.text)
            if args.log_probabilities is not None:
                lines.append(_log_probability_line(package.tokenizer, ids[-1] if ids else prompt[-1], token))
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
    _print("".join(lines))
    if finish == "capacity":
        _log(session.context_full_message)
    if args.stats:
        print(stats.report(session.runs, session.drafts), file=sys.stderr)
    return code


def _log_probability_line(tokenizer: Tokenizer, previous: int, token: Token) -> str:
    """A line of JSON, with null for log 0. Texts are decoded after `previous`: spaces are parts of tokens."""
    before = tokenizer.decode([previous])

    def entry(id: int, log_probability: float | None) -> dict[str, Any]:
        text = tokenizer.decode([previous, id])
        text = text.removeprefix(before) if text.startswith(before) else tokenizer.decode([id])
        finite = log_probability is not None and math.isfinite(log_probability)
        return {"id": id, "text": text, "log_probability": log_probability if finite else None}

    top = [entry(*one) for one in token.top]
    return json.dumps({**entry(token.id, token.log_probability), "top": top}) + "\n"


def _log(message: str) -> None:
    report("run", message)


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
