#!/usr/bin/env python3
"""Where do two generations part: at which step, in which layer, at which tensor?

    python debug_flash_generation.py --checkpoint_path=DIR --prompts="What is a turboprop engine?"
    python debug_flash_generation.py --checkpoint_path=DIR --tflite_path=model.tflite

Flash attention against standard attention, or a TFLite file against Hugging Face, token by token, both fed
what the latter chooses. At the step at which they part, or, if they do not, at which their logits are
furthest apart, the tensors on the way are compared, layer by layer. Exit code 0 if they say the same, 1 if
they part, 2 for wrong usage.
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
    parser = flags.parser("debug_flash_generation.py", __doc__)
    parser.add_argument(
        "--tflite_path", metavar="FILE", help="compare this file with Hugging Face, instead of attentions"
    )
    parser.add_argument(
        "--tolerance",
        type=flags.tolerance,
        help="how far a tensor may be off, relative to its largest number, before it is named (0.0001; for a "
        "quantised file what verify_tflite.py lets logits be off)",
    )
    flags.blocks(parser)
    return parser


def debug(args: argparse.Namespace) -> int:
    from tinyllama.verification.output import Report

    directory = flags.directory_of(args)
    tokenizer, prompts = flags.encoded(args, directory)
    if args.tflite_path and (args.q_block or args.kv_block):
        raise UsageError("--q_block and --kv_block are in the file: leave them out with --tflite_path")
    subject, reference, limit = (_file if args.tflite_path else _attentions)(args, directory, prompts)
    limit = limit if args.tolerance is None else args.tolerance
    report = Report()
    for text, prompt in prompts.items():
        report.say(f"Prompt: {text!r}, {len(prompt)} tokens; {subject.label} against {reference.label}")
        same = _compare(report, subject, reference, prompt, args.max_new_tokens, tokenizer, limit)
        report.verdict(same, "the same tokens")
    return report.code


def _attentions(
    args: argparse.Namespace, directory: Path, prompts: dict[str, list[int]]
) -> tuple[Predictor, Predictor, float]:
    """What is compared with what, and by how much a tensor may be off."""
    from export.model import LanguageModel
    from tinyllama.verification import check_exported
    from tinyllama.verification.exported import Exported, read_weights
    from tinyllama.verification.trace import FLOAT32

    positions = LanguageModel.read(directory).max_positions
    tokens, capacity = check_exported.sizes(prompts, args.max_new_tokens, positions)
    weights = read_weights(directory)
    blocks = flags.blocks_for(args, tokens)
    standard = Exported(directory, weights, tokens, capacity, label="standard attention")
    flash = Exported(directory, weights, tokens, capacity, "flash", blocks, "flash attention")
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
    from tinyllama.verification.trace import culprit, differences

    steps = comparison.drift(reference, subject, prompt, tokens)
    report.say("  step  position  logits off by  token")
    for number, step in enumerate(steps):
        token = f"{step.expected} {tokenizer.decode([step.expected])!r}"
        if step.expected != step.found:
            token += f" or {step.found} {tokenizer.decode([step.found])!r}"
        report.say(f"  {number:4}  {len(prompt) - 1 + number:8}  {step.off:13.1e}  {token}")
    parted = comparison.parting(steps)
    at = max(range(len(steps)), key=lambda n: steps[n].off) if parted is None else parted
    how = f"do not part in {len(steps)} tokens; their logits are furthest apart" if parted is None else "part"
    where = f"prefill of {len(prompt)} tokens" if at == 0 else f"decode at position {len(prompt) - 1 + at}"
    report.say(
        f"They {how} at step {at}, {where}. On the way there, relative to each tensor's largest number:"
    )
    fed = [step.expected for step in steps[:at]]
    found = differences(reference.trace(prompt, fed), subject.trace(prompt, fed))
    for line in _by_layer(found):
        report.say(f"  {line}")
    told = culprit(found, limit)
    report.say(f"{told[0].upper()}{told[1:]}.")
    return parted is None


def _by_layer(found: Sequence[Difference]) -> list[str]:
    """The largest difference in each layer, and where."""
    lines = []
    for layer in dict.fromkeys(item.layer for item in found if item.layer is not None):
        worst = max((item for item in found if item.layer == layer), key=lambda item: item.relative)
        lines.append(f"layer {layer:3}   {worst.relative:.1e}   {worst.name}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    return flags.main(parser(), debug, argv)


if __name__ == "__main__":
    sys.exit(main())
