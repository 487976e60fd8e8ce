#!/usr/bin/env python3
"""Verify a converted file as it will be run, on LiteRT by runtime_py, against Hugging Face in float32.

    python verify_tflite.py --tflite_path=/tmp/tinyllama_q8_ekv1024.tflite --checkpoint_path=DIR

First the weights are compared: float32 ones must be the checkpoint's, others as near as their bits allow.
After each prompt both generate greedily, as a user would have them do; then both are fed the same tokens,
and the drift of the logits is shown step by step. The first 10 tokens must be the same; those of a quantised
file may part where the two candidates are no further apart than twice the usual drift. Logits of a file with
float32 weights must be within --tolerance (0.01). Those of a quantised one are compared with what PyTorch
computes with the file's own weights: within 0.01, too; where its kernels round what the weights are
multiplied with to 8 bits, PyTorch does so, and differences may be up to 0.2 of the logits' spread (root mean
squares, in the median of the steps), and within --tolerance if that is given.

Where something differs, the first tensor that does is named. Exit code 0 if all tests passed, 1 if not, 2
for wrong usage.
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

    exit_on_interrupt("verify_tflite.py")

from o2o.cli.arguments import Parser
from tinyllama.verification import flags

PROMPTS = ("What is AI?", "Hello, how are you?")


def parser() -> Parser:
    parser = flags.parser("verify_tflite.py", __doc__, PROMPTS)
    parser.add_argument("--tflite_path", metavar="FILE", required=True, help="what convert_to_tflite.py made")
    parser.add_argument(
        "--tolerance",
        type=flags.tolerance,
        help="how far logits may be apart (0.01 where all is computed in float32)",
    )
    return parser


def verify(args: argparse.Namespace) -> int:
    from tinyllama.verification.check_tflite import Verification
    from tinyllama.verification.hugging_face import HuggingFace
    from tinyllama.verification.output import Report
    from tinyllama.verification.tflite import TfliteFile
    from tinyllama.verification.tolerances import Precision

    directory = flags.directory_of(args)
    tokenizer, prompts = flags.encoded(args, directory)
    file = TfliteFile(Path(args.tflite_path), directory)
    file.check(prompts, args.max_new_tokens)
    reference = HuggingFace(directory)
    precision = Precision.of(file.model, args.tolerance)
    report, eos = Report(), file.package.eos
    Verification(report, file, reference, precision, prompts, tokenizer, args.max_new_tokens, eos).run()
    return report.code


def main(argv: Sequence[str] | None = None) -> int:
    return flags.main(parser(), verify, argv)


if __name__ == "__main__":
    sys.exit(main())
