#!/usr/bin/env python3
"""Find where two generations diverge: the step, the layer and the tensor.

    python debug_flash_generation.py --checkpoint_path=DIR --prompts="What is a turboprop engine?"
    python debug_flash_generation.py --checkpoint_path=DIR --tflite_path=model.tflite

This compares flash attention with standard attention, or a TFLite file with Hugging Face. Both read the
tokens that the second one chooses. The command selects the first step with different choices, or else the
step with the largest difference of logits. It compares the intermediate tensors of this step, layer by layer.
Exit code 0: the same tokens; 1: they diverge; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    # Run by path, Python looks for modules in this folder first, where `tinyllama` is a script.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    from o2o.cli.interrupt import exit_on_interrupt

    exit_on_interrupt("debug_flash_generation.py")

from o2o.cli.arguments import Parser
from o2o.errors import UsageError
from tinyllama.verification import flags

if TYPE_CHECKING:
    from runtime_py.text.tokenizer import Tokenizer
    from tinyllama.verification.output import Report
    from tinyllama.verification.protocol import Predictor
    from tinyllama.verification.trace import Difference


def parser() -> Parser:
    """Make the command line's parser.

    Returns:
        The parser.
    """
    parser = flags.parser("debug_flash_generation.py", __doc__)
    parser.add_argument(
        "--tflite_path",
        metavar="FILE",
        help="compare this file with Hugging Face, instead of two attention implementations",
    )
    parser.add_argument(
        "--tolerance",
        type=flags.tolerance,
        help="largest difference of a tensor, relative to its largest element, that is accepted (0.0001; for "
        "a quantized file the limit of verify_tflite.py)",
    )
    flags.add_block_flags(parser)
    return parser


def debug(args: argparse.Namespace) -> int:
    """Compare two generations and report where they diverge.

    Args:
        args: The parsed command line.

    Returns:
        The exit code.

    Raises:
        UsageError: Flags exclude each other.
    """
    from tinyllama.verification.output import Report

    directory = flags.directory_of(args)
    tokenizer, prompts = flags.encode_prompts(args, directory)
    if args.tflite_path and (args.q_block or args.kv_block):
        raise UsageError(
            "--q_block and --kv_block cannot be combined with --tflite_path: the file has its own block sizes"
        )
    subject, reference, limit = (_file if args.tflite_path else _attentions)(args, directory, prompts)
    limit = limit if args.tolerance is None else args.tolerance
    report = Report()
    for text, prompt in prompts.items():
        report.write(f"Prompt: {text!r}, {len(prompt)} tokens; {subject.label} against {reference.label}")
        same = _compare(report, subject, reference, prompt, args.max_new_tokens, tokenizer, limit)
        report.verdict(same, "the same tokens")
    return report.code


def _attentions(
    args: argparse.Namespace, directory: Path, prompts: dict[str, list[int]]
) -> tuple[Predictor, Predictor, float]:
    """Subject, reference, and the largest accepted difference of a tensor."""
    from export.model import LanguageModel
    from export.options import FLASH
    from tinyllama.verification import check_exported
    from tinyllama.verification.exported import Exported, read_weights
    from tinyllama.verification.trace import FLOAT32

    positions = LanguageModel.read(directory).max_positions
    tokens, capacity = check_exported.sizes(prompts, args.max_new_tokens, positions)
    weights = read_weights(directory)
    blocks = flags.blocks_for(args, tokens)
    standard = Exported(directory, weights, tokens, capacity, label="standard attention")
    flash = Exported(directory, weights, tokens, capacity, FLASH, blocks, "flash attention")
    return flash, standard, FLOAT32


def _file(
    args: argparse.Namespace, directory: Path, prompts: dict[str, list[int]]
) -> tuple[Predictor, Predictor, float]:
    from tinyllama.verification.hugging_face import HuggingFace
    from tinyllama.verification.tflite import TfliteFile
    from tinyllama.verification.tolerances import Precision
    from tinyllama.verification.trace import FLOAT32

    reference = HuggingFace(directory)
    file = TfliteFile(Path(args.tflite_path), directory)
    file.check(prompts, args.max_new_tokens)
    return file, reference, Precision.of(file.model).noise or FLOAT32


def _compare(
    report: Report,
    subject: Predictor,
    reference: Predictor,
    prompt: Sequence[int],
    tokens: int,
    tokenizer: Tokenizer,
    limit: float,
) -> bool:
    from tinyllama.verification import comparison
    from tinyllama.verification.trace import differences, first_difference

    steps = comparison.drift(reference, subject, prompt, tokens)
    report.write("  step  position  logits off by  token")
    for number, step in enumerate(steps):
        token = f"{step.expected} {tokenizer.decode([step.expected])!r}"
        if step.expected != step.actual:
            token += f" or {step.actual} {tokenizer.decode([step.actual])!r}"
        report.write(f"  {number:4}  {len(prompt) - 1 + number:8}  {step.off:13.1e}  {token}")
    parted = comparison.parting(steps)
    at = max(range(len(steps)), key=lambda n: steps[n].off) if parted is None else parted
    how = f"choose the same {len(steps)} tokens; their logits differ most" if parted is None else "diverge"
    where = f"prefill of {len(prompt)} tokens" if at == 0 else f"decode at position {len(prompt) - 1 + at}"
    report.write(
        f"They {how} at step {at}, {where}. The largest differences there, relative to each tensor's largest "
        "element:"
    )
    fed = [step.expected for step in steps[:at]]
    compared = differences(reference.trace(prompt, fed), subject.trace(prompt, fed))
    for line in _by_layer(compared):
        report.write(f"  {line}")
    message = first_difference(compared, limit)
    report.write(f"{message[0].upper()}{message[1:]}.")
    return parted is None


def _by_layer(compared: Sequence[Difference]) -> list[str]:
    """The largest difference in each layer, and where."""
    lines = []
    for layer in dict.fromkeys(item.layer for item in compared if item.layer is not None):
        worst = max((item for item in compared if item.layer == layer), key=lambda item: item.relative)
        lines.append(f"layer {layer:3}   {worst.relative:.1e}   {worst.name}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    return flags.main(parser(), debug, argv)


if __name__ == "__main__":
    sys.exit(main())
