"""The flags of the verifying commands, and the prompts that they name."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from o2o.cli.arguments import Parser, positive_int
from o2o.cli.command import run
from o2o.errors import UsageError
from o2o.operators.causal_attention import Blocks, adaptive_blocks
from runtime_py.text.tokenizer import Tokenizer, load_tokenizer
from tinyllama.checkpoint_flag import add_checkpoint_path, checkpoint_at

TURBOPROP = ("What is a turboprop engine?",)


def parser(program: str, doc: str | None, prompts: Sequence[str] = TURBOPROP) -> Parser:
    """A parser with what all commands take."""
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
    add("--debug", action="store_true", help="show where an error comes from")
    parser.set_defaults(default_prompts=list(prompts))
    return parser


def main(parser: Parser, body: Callable[[argparse.Namespace], int], argv: Sequence[str] | None) -> int:
    """Run a command: `body` with what `parser` finds in `argv`, None for the command line. Its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run(parser.prog, lambda: body(parser.parse_args(arguments)), debug="--debug" in arguments)


def blocks(parser: Parser) -> None:
    """The flags of flash attention."""
    help = "at a time (default: as o2o.operators.causal_attention.adaptive has it)"
    for name, what in (("q_block", "queries"), ("kv_block", "keys")):
        parser.add_argument(
            f"--{name}", f"--flash_{name}", dest=name, metavar="N", type=positive_int, help=f"{what} {help}"
        )


def blocks_for(args: argparse.Namespace, tokens: int) -> Blocks | None:
    """What `blocks` of the command line says for T = `tokens`; None for nothing."""
    if args.q_block is None and args.kv_block is None:
        return None
    default = adaptive_blocks(tokens)
    return Blocks(args.q_block or default.q, args.kv_block or default.kv)


def tolerance(text: str) -> float:
    if not (number := float(text)) >= 0 or math.isinf(number):
        raise argparse.ArgumentTypeError(f"{text} is no tolerance: give a number from 0 on")
    return number


def directory_of(args: argparse.Namespace) -> Path:
    """The checkpoint's folder. Raises UsageError where nothing is, ModelError for what is no checkpoint."""
    return checkpoint_at(args.checkpoint_path).directory


def encoded(args: argparse.Namespace, directory: Path) -> tuple[Tokenizer, dict[str, list[int]]]:
    """The tokenizer of the checkpoint in `directory`, and the prompts with their ids.

    Raises ModelError for a checkpoint without a tokenizer, UsageError for a prompt without tokens.
    """
    tokenizer = load_tokenizer(directory)
    prompts = {text: tokenizer.encode(text) for text in args.prompts or args.default_prompts}
    for text, ids in prompts.items():
        if not ids:
            raise UsageError(f"--prompts {text!r} has no tokens: give some text")
    return tokenizer, prompts
