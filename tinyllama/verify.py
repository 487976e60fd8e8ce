#!/usr/bin/env python3
"""Verify the exported program, before conversion, against Hugging Face in float32.

    python verify.py --checkpoint_path=DIR --prompts="What is a turboprop engine?" --max_new_tokens=50

This compares the logits for random input ids, then the text generated after each prompt. If they differ, it
names the first tensor that differs. Exit code 0: they are the same; 1: they differ; 2: wrong usage.
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

    exit_on_interrupt("verify.py")

from o2o.cli.arguments import Parser
from tinyllama.verification import flags

TOLERANCE = 1e-4


def parser() -> Parser:
    """Make the command line's parser.

    Returns:
        The parser.
    """
    parser = flags.parser("verify.py", __doc__)
    parser.add_argument(
        "--tolerance",
        type=flags.tolerance,
        help=f"largest difference of logits ({TOLERANCE}; after long prompts, twice the difference between "
        "Hugging Face's float32 and float64)",
    )
    return parser


def verify(args: argparse.Namespace) -> int:
    """Run the verification.

    Args:
        args: The parsed command line.

    Returns:
        The exit code.
    """
    from tinyllama.verification import check_exported

    return check_exported.run(
        args, TOLERANCE, TOLERANCE, lambda setting: [(setting.exported(), setting.reference)]
    )


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
