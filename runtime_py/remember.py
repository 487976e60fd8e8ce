"""Store the keys and values of a prompt for later texts: `o2o remember PACKAGE FILE`."""

from __future__ import annotations

from o2o.cli import interrupt

if __name__ == "__main__":
    interrupt.exit_on_interrupt("remember")  # before the slow imports

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from o2o.cli.arguments import Parser
from o2o.cli.command import report, run
from o2o.errors import UsageError
from runtime_py.engine_flags import add_engine_flags, options_from

if TYPE_CHECKING:
    from runtime_py.package import Package

CONTINUATIONS = (" the", "the", "\nThe", "\n\n", ".", ", 1")
"""Texts that may follow. What tokens they have in common with each other is sure to be in later prompts."""
SHORTEST = 8
"""The fewest tokens that are stored: fewer are computed as fast."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code: 0; 1 for a package that cannot be run, or no space; 2 for wrong usage or a long prompt.
    """
    argv = sys.argv[1:] if argv is None else argv
    return run("remember", lambda: _run(parser().parse_args(argv)), debug="--debug" in argv)


def parser() -> Parser:
    """Make the command line's parser.

    Returns:
        The parser.
    """
    parser = Parser(
        prog="python -m runtime_py.remember",
        description="Store the keys and values of a system prompt, or of another beginning of prompts. Then "
        "`o2o run`, `o2o chat` and `o2o serve` do not compute them again: they use the longest prefix that "
        "a prompt shares with a stored one. Stored prompts belong to the bytes of the model; those of "
        "quantized models also to the engine. `o2o cache` lists those of the disk cache.",
        examples=[
            "o2o remember my-package system.txt",
            "o2o remember my-package prefix.txt --as text --in-package",
        ],
    )
    add = parser.add_argument
    add("package", metavar="PACKAGE", help="folder with a model and its tokenizer, or a model file")
    add("file", metavar="FILE", help="text in UTF-8; line breaks at its end are ignored")
    add(
        "--as",
        dest="form",
        choices=("system", "text"),
        help="system: the system message of a chat; text: the beginning of a prompt (default: both; text for "
        "a package without a chat template)",
    )
    add(
        "--in-package",
        action="store_true",
        help="store the rows beside the model, in prompt_cache/, and not in the disk cache",
    )
    add("--tokenizer", metavar="DIR", help="folder of the tokenizer (default: the folder of the model)")
    add_engine_flags(parser)
    add("--debug", action="store_true", help="show the engine's log, and tracebacks")
    return parser


def _run(args: argparse.Namespace) -> None:
    # Imported late, so that --help is fast.
    from runtime_py.package import Package

    text = _read(args.file)
    with Package.load(args.package, args.tokenizer, options_from(args, _log)) as package:
        prompts = _prompts(package, text, args.form)
        for form, ids in prompts.items():
            if len(ids) < SHORTEST:
                raise UsageError(
                    f"{args.file}: {len(ids)} tokens as {form}: fewer than {SHORTEST} are computed as fast"
                )
        for form, ids in prompts.items():
            label = f"{package.model.resolve()}: {Path(args.file).name} as {form}"
            file = package.remember(ids, in_package=args.in_package, label=label)
            print(f"{form}: {len(ids):,} tokens, {file.stat().st_size / 1e6:,.1f} MB: {file}")


def _read(name: str) -> str:
    try:
        text = Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}") from None
    if not (text := text.rstrip("\r\n")):
        raise UsageError(f"{name} is empty")
    return text


def _prompts(package: Package, text: str, form: str | None) -> dict[str, list[int]]:
    """The token ids by form."""
    from runtime_py.text.chat_template import template_sources
    from runtime_py.text.tokenizer.token_ids import TokenIds

    forms = [form] if form else ["system", "text"] if template_sources(package.directory) else ["text"]
    if isinstance(package.tokenizer, TokenIds):
        return {"text": package.tokenizer.encode(text)}
    encode = {
        "system": _chat_encoder(package, text),
        "text": lambda end: package.tokenizer.encode(text + end),
    }
    return {form: _common_prefix([encode[form](end) for end in CONTINUATIONS]) for form in forms}


def _chat_encoder(package: Package, system: str) -> Callable[[str], list[int]]:
    """Returns the token ids of a conversation with this system message and the given message of the user."""
    from runtime_py.text.chat_template import ChatTemplate

    def encode(message: str) -> list[int]:
        template = ChatTemplate(package.directory, package.tokenizer.special_tokens)
        rendered = template.render(
            [{"role": "system", "content": system}, {"role": "user", "content": message}]
        )
        return package.tokenizer.encode(rendered, special=False)

    return encode


def _common_prefix(texts: Sequence[Sequence[int]]) -> list[int]:
    """The tokens with which all texts begin."""
    prefix = []
    for tokens in zip(*texts, strict=False):
        if len(set(tokens)) > 1:
            break
        prefix.append(tokens[0])
    return prefix


def _log(message: str) -> None:
    report("remember", message)


if __name__ == "__main__":
    sys.exit(main())
