#!/usr/bin/env python3
"""Verify flash attention: the exported program with it against the one with standard attention, and against
Hugging Face, in float32.

    python verify_flash.py --checkpoint_path=DIR --prompts="What is a turboprop engine?" --max_new_tokens=50

Logits of a prompt must be within 3e-5, those of tokens fed one by one within 1e-4, or all within --tolerance;
without it, twice what Hugging Face's float32 is off from float64 is allowed where that is more, as after
prompts of hundreds of tokens. The text must be the same. Where they differ, the first tensor that does is
named. Exit code 0 if all is the same, 1 if not, 2 for wrong usage.
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
    parser = flags.parser("verify_flash.py", __doc__)
    parser.add_argument(
        "--tolerance",
        type=flags.tolerance,
        help=f"how far logits may be apart ({PREFILL:.0e} for a prompt's, {DECODE:.0e} for later ones)",
    )
    flags.blocks(parser)
    return parser


def verify(args: argparse.Namespace) -> int:
    from tinyllama.verification import check_exported
    from tinyllama.verification.protocol import PromptPredictor

    def compared(setting: check_exported.Setting) -> list[tuple[PromptPredictor, PromptPredictor]]:
        blocks = flags.blocks_for(args, setting.tokens)
        flash = setting.exported("flash", blocks, "flash attention")
        return [(flash, setting.exported(label="standard attention")), (flash, setting.reference)]

    return check_exported.run(args, PREFILL, DECODE, compared)


def main(argv: Sequence[str] | None = None) -> int:
    return flags.main(parser(), verify, argv)


if __name__ == "__main__":
    sys.exit(main())
