"""Run a package: `python -m runtime_py.run PACKAGE [--prompt TEXT | --chat]`."""

from __future__ import annotations

import argparse
import io
import secrets
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from o2o.cli.command import INTERRUPTED, Parser, numbers, positive, run
from o2o.errors import UsageError
from runtime_py.engines.selection import add_engine

if TYPE_CHECKING:
    from runtime_py.evaluation.timing import Stats
    from runtime_py.generation.generate import Options
    from runtime_py.package import Package

DEFAULT_PROMPT = "Lily picked up a flower."


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0; 1 for a package that does not run; 2 for wrong usage, or a prompt that does not fit."""
    argv = sys.argv[1:] if argv is None else argv
    return run("run", lambda: _run(_parser().parse_args(argv)), debug="--debug" in argv)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m runtime_py.run",
        description="Let the model of a package continue a prompt, or chat with it.",
    )
    add = parser.add_argument
    add(
        "package",
        metavar="PACKAGE",
        help="folder with model.circle, .tflite or .onnx and its tokenizer, or the file",
    )
    add("--tokenizer", metavar="DIR", help="folder of the tokenizer, where it is not with the model")
    add("--prompt", metavar="TEXT", type=_text, help=f"default: {DEFAULT_PROMPT}")
    add("--stream", action="store_true", help="print the text as it comes, and the ids after it")
    add("--stats", action="store_true", help="say on stderr how fast it went and what it took")
    add_engine(parser)
    add(
        "--buckets",
        metavar="A,B",
        type=numbers,
        help="tokens of context for which LiteRT decodes apart, '' for none (256,512,... below the model's)",
    )
    add("--no-cache", action="store_true", help="keep nothing of a big model on disk for the next load")
    add("--debug", action="store_true", help="show the runtime's log, and tracebacks")

    chat = parser.add_argument_group("chat").add_argument
    chat(
        "--chat",
        action="store_true",
        help="take messages from stdin, a line each, by the checkpoint's chat template, or one from --prompt",
    )
    chat("--system", metavar="TEXT", type=_text, help="what the model is told before all")

    end = parser.add_argument_group("where a text ends, beside the checkpoint's end of sequence").add_argument
    end("--max-new-tokens", metavar="N", type=positive, help="default: to the end of the context")
    end("--stop", metavar="TEXT", type=_text, action="append", default=[], help="any number of times")
    end("--stop-token", metavar="ID", type=int, action="append", default=[], help="any number of times")

    choice = parser.add_argument_group("how tokens are chosen: the likeliest, or by chance").add_argument
    choice("--temperature", metavar="X", type=float, help="default: 1 with one of those below, else 0")
    choice("--top-k", metavar="N", type=int, help="only of the N likeliest")
    choice("--top-p", metavar="X", type=float, help="only of the likeliest that make up X together")
    choice("--min-p", metavar="X", type=float, help="only of those X times as likely as the likeliest")
    choice("--seed", metavar="N", type=int, help="the same choices every time")
    choice("--repetition-penalty", metavar="X", type=float, default=1.0, help="for tokens that have been")
    return parser


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("the text is not UTF-8") from None
    return text


def _run(args: argparse.Namespace) -> int:
    # Imported late, so that --help is quick and Ctrl-C during the imports is quiet.
    from runtime_py.evaluation.timing import Stats
    from runtime_py.generation.session import Session
    from runtime_py.package import Package

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal need not know every character
    if args.system is not None and not args.chat:
        raise UsageError("--system goes with --chat")
    options = _options(args)
    stats = Stats()
    package = Package.load(args.package, args.tokenizer)
    if not args.tokenizer and package.model.parent.resolve() != package.directory.resolve():
        _say(f"{package.directory} holds no model: taking {package.model} beside it")
    with package:
        conversation = package.chat(args.system, **options) if args.chat else None
        prompt = package.tokenizer.encode(DEFAULT_PROMPT if args.prompt is None else args.prompt)
        engine = package.engine(args.threads, args.debug, not args.no_cache, _say, args.buckets, args.engine)
        package.session = Session(engine)
        stats.loaded()
        if args.stats:
            print(f"engine:  {package.told}", file=sys.stderr)
        if conversation is None:
            return _continue(package, prompt, args, options, stats)
        from runtime_py.repl import talk

        return talk(conversation, args.prompt, stats if args.stats else None, _say)


def _options(args: argparse.Namespace) -> Options:
    """Raises UsageError for numbers out of range."""
    from runtime_py.generation.sampling import Sampling

    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    sampling = Sampling(**{name: getattr(args, name) for name in names})
    if sampling.draws and sampling.seed is None:
        sampling = replace(sampling, seed=secrets.randbits(32))
        if args.stats:
            _say(f"--seed {sampling.seed} makes the same choices")
    return {
        "max_new_tokens": args.max_new_tokens,
        "stop": args.stop,
        "stop_tokens": args.stop_token,
        "sampling": sampling,
    }


def _continue(
    package: Package, prompt: Sequence[int], args: argparse.Namespace, options: Options, stats: Stats
) -> int:
    """Print what follows the prompt. Ctrl-C ends the text, not what has been made of it."""
    begun = f"prompt: {DEFAULT_PROMPT if args.prompt is None else args.prompt}\n"
    ids: list[int] = []
    text, finish, code = "", None, 0
    tokens = package.stream(prompt, **options)
    stats.begin()
    try:
        for token in tokens:
            stats.token()
            if args.stream:
                if not ids:
                    _print(f"{begun}detokenized: ")
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
        _print(f"{begun}{generated}detokenized: {text}\n")
    if finish == "capacity":
        _say(package.session.full)
    if args.stats:
        print(stats.report(package.session.runs), file=sys.stderr)
    return code


def _say(line: str) -> None:
    print(f"run: {line}", file=sys.stderr)


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
