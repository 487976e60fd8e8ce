"""Run a package: `python -m runtime_py.run PACKAGE [--prompt TEXT]`."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Sequence

from o2o.command import Parser, positive, run

DEFAULT_PROMPT = "Lily picked up a flower."


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0; 1 for a package that does not run; 2 for wrong usage, or a prompt that does not fit."""
    argv = sys.argv[1:] if argv is None else argv
    return run("run", lambda: _run(_parser().parse_args(argv)), debug="--debug" in argv)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m runtime_py.run", description="Let the model of a package continue a prompt, greedily."
    )
    add = parser.add_argument
    add(
        "package",
        metavar="PACKAGE",
        help="folder with model.circle or model.tflite and its tokenizer, or the file",
    )
    add("--tokenizer", metavar="DIR", help="folder of the tokenizer, where it is not with the model")
    add("--prompt", metavar="TEXT", type=_text, default=DEFAULT_PROMPT, help="default: %(default)s")
    add("--max-new-tokens", metavar="N", type=positive, help="default: to the end of the context")
    add("--stream", action="store_true", help="print the text as it comes, and the ids after it")
    add("--stats", action="store_true", help="say on stderr how fast it went and what it took")
    add("--threads", metavar="N", type=positive, help="default: one for each core, one for a small model")
    add("--no-cache", action="store_true", help="keep nothing of a big model on disk for the next load")
    add("--debug", action="store_true", help="show the runtime's log, and tracebacks")
    return parser


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("the text is not UTF-8") from None
    return text


def _run(args: argparse.Namespace) -> None:
    # Imported late, so that --help is quick and Ctrl-C during the imports is quiet.
    from runtime_py.detokenizer import Detokenizer
    from runtime_py.generation import generate
    from runtime_py.package import Package
    from runtime_py.stats import Stats

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal need not know every character
    stats = Stats()
    package = Package.load(args.package, args.tokenizer)
    if not args.tokenizer and package.model.parent.resolve() != package.directory.resolve():
        _say(f"{package.directory} holds no model: taking {package.model} beside it")
    tokenizer = package.tokenizer
    prompt = tokenizer.encode(args.prompt)
    with contextlib.closing(package.engine(args.threads, args.debug, not args.no_cache, _say)) as engine:
        ids: list[int] = []
        text = ""
        stats.loaded()
        for token in generate(
            engine, prompt, Detokenizer(tokenizer), eos=package.eos, max_new_tokens=args.max_new_tokens
        ):
            stats.token()
            if args.stream:
                if not ids:
                    _print(f"prompt: {args.prompt}\ndetokenized: ")
                _print(token.text)
            ids.append(token.id)
            text += token.text
        generated = f"generated: {{ {', '.join(map(str, ids))} }}\n"
        if args.stream:
            _print(f"\n{generated}")
        else:
            _print(f"prompt: {args.prompt}\n{generated}detokenized: {text}\n")
        if args.stats:
            print(stats.report(engine.plan(len(prompt))), file=sys.stderr)


def _say(line: str) -> None:
    print(f"run: {line}", file=sys.stderr)


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
