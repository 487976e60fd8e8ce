#!/usr/bin/env python3
"""Verify a converted file as it will be run, on LiteRT by runtime_py, against Hugging Face in float32.

    python verify_tflite.py --tflite_path=/tmp/tinyllama_q8_ekv1024.tflite --checkpoint_path=DIR

After each prompt both generate greedily; then both are fed the same tokens, and their logits are compared,
step by step. Of a file with float32 weights, logits must be within --tolerance (0.01) and the first 10
tokens the same. Of a quantised one, the differences must be small against the spread of the logits (root
mean squares, in the median of the steps: up to 0.01 of it for float16, 0.2 for int8, 0.6 for int4), and
where the first 10 tokens part, the two candidates no further apart than twice the usual drift; with
--tolerance, logits must be within it, too. Where something differs, the first tensor that does is named.
Exit code 0 if all tests passed, 1 if not, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Run by path, Python looks for modules in this folder first, where `tinyllama` is a script.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from o2o import command
from tinyllama.verification import flags

PROMPTS = ("What is AI?", "Hello, how are you?")


def parser() -> command.Parser:
    parser = flags.parser("verify_tflite.py", __doc__, PROMPTS)
    parser.add_argument("--tflite_path", metavar="FILE", required=True, help="what convert_to_tflite.py made")
    parser.add_argument(
        "--tolerance",
        type=flags.tolerance,
        help="how far logits may be apart (0.01 where weights are float32)",
    )
    return parser


def verify(args: argparse.Namespace) -> int:
    from tinyllama.verification import converted
    from tinyllama.verification.hugging_face import HuggingFace
    from tinyllama.verification.precision import Precision
    from tinyllama.verification.report import Report
    from tinyllama.verification.tflite import TfliteFile

    directory = flags.directory_of(args)
    tokenizer, prompts = flags.encoded(args, directory)
    file = TfliteFile(Path(args.tflite_path), directory)
    file.check(prompts, args.max_new_tokens)
    reference = HuggingFace(directory)
    precision = Precision.of(file.model, args.tolerance)
    report = Report()
    converted.verify(
        report, file, reference, precision, prompts, tokenizer, args.max_new_tokens, file.package.eos
    )
    return report.code


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)

    def body() -> int:
        return verify(parser().parse_args(arguments))

    return command.run("verify_tflite.py", body, debug="--debug" in arguments)


if __name__ == "__main__":
    sys.exit(main())
