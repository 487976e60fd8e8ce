"""Flags of the verification commands, and the prompts that they select."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from export.loading_flags import MODEL_FILE, TRUST, add_loading_flags
from o2o.cli.arguments import Parser, positive_int
from o2o.cli.command import run
from o2o.errors import UsageError
from o2o.operators.core_attention import FlashBlockSizes, adaptive_blocks
from runtime_py.text.tokenizer import Tokenizer, load_tokenizer
from tinyllama.checkpoint_flag import add_checkpoint_path, checkpoint_at

TURBOPROP = ("What is a turboprop engine?",)


def parser(program: str, doc: str | None, prompts: Sequence[str] = TURBOPROP) -> Parser:
    """Make a parser with the common flags.

    Args:
        program: The command's name.
        doc: The text that --help begins with.
        prompts: The default prompts.

    Returns:
        The parser.
    """
    parser = Parser(prog=program, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add_checkpoint_path(parser)
    add(
        "--prompts",
        metavar="TEXT",
        action="append",
        help=f"may be given several times (default: {' '.join(map(repr, prompts))})",
    )
    add("--max_new_tokens", metavar="N", type=positive_int, default=30, help="(%(default)s)")
    add_loading_flags(parser, TRUST, MODEL_FILE)
    add("--debug", action="store_true", help="show where an error comes from")
    parser.set_defaults(default_prompts=list(prompts))
    return parser


def main(parser: Parser, body: Callable[[argparse.Namespace], int], argv: Sequence[str] | None) -> int:
    """Run a command.

    Args:
        parser: The command's parser.
        body: Called with the parsed command line; returns the exit code.
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run(parser.prog, lambda: body(parser.parse_args(arguments)), debug="--debug" in arguments)


def add_block_flags(parser: Parser) -> None:
    """Add the flags of flash attention.

    Args:
        parser: The command's parser.
    """
    help = "at a time (default: chosen by the number of tokens)"
    for name, what in (("q_block", "queries"), ("kv_block", "keys")):
        parser.add_argument(
            f"--{name}", f"--flash_{name}", dest=name, metavar="N", type=positive_int, help=f"{what} {help}"
        )


def blocks_for(args: argparse.Namespace, tokens: int) -> FlashBlockSizes | None:
    """Return the block sizes that the command line gives.

    Args:
        args: The parsed command line.
        tokens: T, for the default of a missing size.

    Returns:
        The sizes; None if no flag was given.
    """
    if args.q_block is None and args.kv_block is None:
        return None
    default = adaptive_blocks(tokens)
    return FlashBlockSizes(args.q_block or default.q, args.kv_block or default.kv)


def tolerance(text: str) -> float:
    """Parse a tolerance.

    Args:
        text: A number of 0 or more.

    Returns:
        The number.

    Raises:
        argparse.ArgumentTypeError: It is something else.
    """
    if not (number := float(text)) >= 0 or math.isinf(number):
        raise argparse.ArgumentTypeError(f"{text} is not a tolerance: give a number of 0 or more")
    return number


def directory_of(args: argparse.Namespace) -> Path:
    """Return the checkpoint's folder.

    Args:
        args: The parsed command line.

    Returns:
        The folder.
    """
    return checkpoint_at(args.checkpoint_path, args.adapter).directory


def encode_prompts(args: argparse.Namespace, directory: Path) -> tuple[Tokenizer, dict[str, list[int]]]:
    """Load the tokenizer and encode the prompts.

    Args:
        args: The parsed command line.
        directory: The checkpoint's folder.

    Returns:
        The tokenizer, and {prompt: ids}.

    Raises:
        UsageError: A prompt has no tokens.
    """
    tokenizer = load_tokenizer(directory)
    prompts = {text: tokenizer.encode(text) for text in args.prompts or args.default_prompts}
    for text, ids in prompts.items():
        if not ids:
            raise UsageError(f"--prompts {text!r} has no tokens: give some text")
    return tokenizer, prompts
