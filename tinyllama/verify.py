#!/usr/bin/env python3
"""Verify what is exported, before it is converted: torch.export's program against Hugging Face, in float32.

    python verify.py --checkpoint_path=DIR --prompts="What is a turboprop engine?" --max_new_tokens=50

First the logits for input ids, then the text generated after each prompt. Where they differ, the first tensor
that does is named. Exit code 0 if all is the same, 1 if not, 2 for wrong usage.
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
    parser = flags.parser("verify.py", __doc__)
    parser.add_argument(
        "--tolerance",
        type=flags.tolerance,
        help=f"how far logits may be apart ({TOLERANCE}, or, after long prompts, twice as far as "
        "Hugging Face's float32 is from float64)",
    )
    return parser


def verify(args: argparse.Namespace) -> int:
    from tinyllama.verification import check_exported

    return check_exported.run(
        args, TOLERANCE, TOLERANCE, lambda setting: [(setting.exported(), setting.reference)]
    )


def main(argv: Sequence[str] | None = None) -> int:
    return flags.main(parser(), verify, argv)


if __name__ == "__main__":
    sys.exit(main())
