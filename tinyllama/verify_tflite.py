#!/usr/bin/env python3
"""Verify a converted file, run as a user runs it, against Hugging Face in float32.

    python verify_tflite.py --tflite_path=/tmp/tinyllama_q8_ekv1024.tflite --checkpoint_path=DIR

First, weights are compared: float32 weights must equal the checkpoint's, others must be within the precision
of their dtype. Then both generate greedily after each prompt. Then both read the same tokens, and the
difference of their logits (drift) is printed step by step.

- The first 10 tokens must be the same. A quantized file may choose another token if both candidates are
  within twice the median drift.
- Logits of a file with float32 weights must agree within --tolerance (0.01).
- Logits of a quantized file are compared with PyTorch that has the file's own weights, within 0.01.
- If its kernels round their inputs to 8 bits, PyTorch rounds too. The root mean square difference may then
  be 0.2 of the logits' spread, in the median of the steps. --tolerance adds its limit.

If something differs, the command names the first tensor that differs. Exit code 0: all tests passed; 1: a
test failed; 2: wrong usage.
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
    """Make the command line's parser.

    Returns:
        The parser.
    """
    parser = flags.parser("verify_tflite.py", __doc__, PROMPTS)
    parser.add_argument("--tflite_path", metavar="FILE", required=True, help="file of convert_to_tflite.py")
    parser.add_argument(
        "--tolerance",
        type=flags.tolerance,
        help="largest difference of logits (0.01 if all arithmetic is float32)",
    )
    return parser


def verify(args: argparse.Namespace) -> int:
    """Run the verification.

    Args:
        args: The parsed command line.

    Returns:
        The exit code.
    """
    from tinyllama.verification.check_tflite import Verification
    from tinyllama.verification.hugging_face import HuggingFace
    from tinyllama.verification.output import Report
    from tinyllama.verification.tflite import TfliteFile
    from tinyllama.verification.tolerances import Precision

    directory = flags.directory_of(args)
    tokenizer, prompts = flags.encode_prompts(args, directory)
    file = TfliteFile(Path(args.tflite_path), directory)
    file.check(prompts, args.max_new_tokens)
    reference = HuggingFace(directory)
    precision = Precision.of(file.model, args.tolerance)
    report, eos = Report(), file.package.eos
    Verification(report, file, reference, precision, prompts, tokenizer, args.max_new_tokens, eos).run()
    return report.code


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
