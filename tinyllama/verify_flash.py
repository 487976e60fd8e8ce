#!/usr/bin/env python3
"""Verify flash attention in the exported program, against standard attention and Hugging Face, in float32.

    python verify_flash.py --checkpoint_path=DIR --prompts="What is a turboprop engine?" --max_new_tokens=50

Logits of a prompt must agree within 3e-5, and logits of tokens fed one by one within 1e-4. --tolerance
replaces both limits. Without it, a limit is at least twice the difference between Hugging Face's float32
and float64, which grows with long prompts. The text must be the same. If they differ, the command names the
first tensor that differs. Exit code 0: they are the same; 1: they differ; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Run by path, Python looks for modules in this folder first, where `tinyllama` is a script.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    from o2o.cli.interrupt import exit_on_interrupt

    exit_on_interrupt("verify_flash.py")

from o2o.cli.arguments import Parser
from tinyllama.verification import flags

PREFILL, DECODE = 3e-5, 1e-4


def parser() -> Parser:
    """Make the command line's parser.

    Returns:
        The parser.
    """
    parser = flags.parser("verify_flash.py", __doc__)
    parser.add_argument(
        "--tolerance",
        type=flags.tolerance,
        help=f"largest difference of logits ({PREFILL:.0e} for a prompt, {DECODE:.0e} for later tokens)",
    )
    flags.add_block_flags(parser)
    return parser


def verify(args: argparse.Namespace) -> int:
    """Run the verification.

    Args:
        args: The parsed command line.

    Returns:
        The exit code.
    """
    from export.options import FLASH
    from tinyllama.verification import check_exported
    from tinyllama.verification.protocol import PromptPredictor

    def compared(setting: check_exported.Setting) -> list[tuple[PromptPredictor, PromptPredictor]]:
        blocks = flags.blocks_for(args, setting.tokens)
        flash = setting.exported(FLASH, blocks, "flash attention")
        return [(flash, setting.exported(label="standard attention")), (flash, setting.reference)]

    return check_exported.run(args, PREFILL, DECODE, compared)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    return flags.main(parser(), verify, argv)


if __name__ == "__main__":
    sys.exit(main())
