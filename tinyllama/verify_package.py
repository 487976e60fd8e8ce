"""Verify a package against the model that it was converted from: `o2o verify PACKAGE MODEL`.

Both read each prompt: the package on its engine, Hugging Face transformers in float32, or PyTorch for a model
of --model-file. Then both read the tokens that the latter chooses. The command compares the logits after each
token, and the choices.

- A float32 package must choose the same tokens. Its logits must agree within --tolerance (0.01).
- A quantized package may choose another token if both candidates are within twice the median difference.
  Its logits may differ by 0.6 of their spread, in the median of the steps.

Exit code 0: all tests passed; 1: a test failed, or a model cannot be run; 2: wrong usage.
"""

from __future__ import annotations

from o2o.cli import interrupt

if __name__ == "__main__":
    interrupt.exit_on_interrupt("verify")

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

from o2o.cli.arguments import Parser, positive_int
from o2o.cli.command import report, run
from runtime_py.engine_flags import add_engine_flags, options_from

if TYPE_CHECKING:
    from runtime_py.engines.engine import Engine
    from runtime_py.package import Package
    from tinyllama.verification.comparison import Step
    from tinyllama.verification.output import Report
    from tinyllama.verification.tolerances import Precision

PROMPTS = ("Once upon a time", "What is AI?")


def parser() -> Parser:
    """Make the command line's parser.

    Returns:
        The parser.
    """
    from export.loading_flags import MODEL_FILE, TRUST, add_adapter_flag, add_loading_flags

    parser = Parser(
        prog="python -m tinyllama.verify_package",
        description=__doc__,
        examples=[
            "o2o verify my-package --checkpoint ./my-checkpoint",
            'o2o verify my-package --checkpoint ./my-checkpoint --prompts "How are you?" --engine litert',
        ],
    )
    add = parser.add_argument
    add("package", metavar="PACKAGE", help="folder, or model file")
    add("model", metavar="MODEL", nargs="?", help="the model that it was converted from, as --checkpoint")
    add("--checkpoint", metavar="MODEL", help="the checkpoint's folder, a GGUF file, or an id on the hub")
    add("--tokenizer", metavar="DIR", help="folder of the tokenizer, or ids: prompts are token ids")
    add(
        "--prompts",
        metavar="TEXT",
        action="append",
        help=f"may be given several times (default: {' '.join(map(repr, PROMPTS))})",
    )
    add("--max-new-tokens", metavar="N", type=positive_int, default=16, help="(%(default)s)")
    add("--tolerance", metavar="X", type=float, help="largest difference of logits (0.01 in float32)")
    add_adapter_flag(parser)
    add_loading_flags(parser, TRUST, MODEL_FILE)
    add_engine_flags(parser)
    add("--debug", action="store_true", help="show the engine's log, and tracebacks")
    return parser


def verify(args: argparse.Namespace) -> int:
    """Verify as the command line describes.

    Args:
        args: The parsed command line.

    Returns:
        The exit code.

    Raises:
        UsageError: A prompt does not fit.
        ModelError: The package or the checkpoint cannot be run, or they are not the same model.
        O2oError: The export extra is missing.
    """
    from o2o.cli.extras import require
    from o2o.cli.progress import progress
    from o2o.errors import ModelError, UsageError
    from runtime_py.package import Package
    from runtime_py.text.tokenizer import has_tokenizer, token_ids

    require("export")
    checkpoint = args.checkpoint or args.model
    if checkpoint is None:
        raise UsageError("give the model that the package was converted from: --checkpoint MODEL")

    from export.hub import resolve
    from tinyllama.verification.comparison import drift
    from tinyllama.verification.output import Report

    options = options_from(args, lambda line: report("verify", line))
    package = Package.load(args.package, args.tokenizer, options)
    if args.tokenizer is None and not has_tokenizer(package.directory):
        package = Package.load(args.package, token_ids.NAME, options)
        report("verify", f"note: {args.package} has no tokenizer: prompts are token ids")
    result = Report()
    with closing(package.engine()) as engine, closing(engine.open_session()) as session:
        prompts = {text: package.tokenizer.encode(text) for text in args.prompts or _prompts(package, engine)}
        tokens = {
            text: _fitting(text, len(ids), args.max_new_tokens, engine.capacity)
            for text, ids in prompts.items()
        }
        directory = resolve(checkpoint, adapter=args.adapter, log=partial(report, "verify"))

        with progress("load the checkpoint", 1, "model"):
            from tinyllama.verification.hugging_face import HuggingFace  # imports torch, which takes seconds

            reference = HuggingFace(directory, context=engine.capacity)
        if reference.vocab_size != engine.vocab_size:
            raise ModelError(
                f"{package.model} has a vocabulary of {engine.vocab_size} tokens, {directory} has "
                f"{reference.vocab_size}: they are not the same model"
            )
        precision = _precision(package, args.tolerance)
        assert package.loaded
        result.write(f"{package.model}: {precision.stored} weights, engine {package.loaded.description}")
        result.write(f"{directory}: {reference.source} in float32")
        for text, ids in prompts.items():
            with progress(f"compare {tokens[text]} tokens", 1, "prompt"):
                steps = drift(reference, session, ids, tokens[text], package.eos)
            result.write()
            result.write(f'Prompt: "{text}", {len(ids)} tokens')
            result.verdict(_compare(result, package, steps, precision), f'prompt "{text}"')
    result.write()
    result.total()
    return result.code


def _prompts(package: Package, engine: Engine) -> Sequence[str]:
    """The prompts of a run without --prompts."""
    from runtime_py.text.tokenizer.token_ids import TokenIds

    if not isinstance(package.tokenizer, TokenIds):
        return PROMPTS
    lengths = (min(length, engine.capacity) for length in (3, 17))
    return [" ".join(str((1 + 7 * at) % engine.vocab_size) for at in range(length)) for length in lengths]


def _fitting(text: str, prompt: int, tokens: int, capacity: int) -> int:
    """The tokens that fit after a prompt, at most `tokens`. Raises UsageError if the prompt does not fit."""
    from o2o.errors import UsageError

    if not 0 < prompt <= capacity:
        raise UsageError(f"--prompts {text[:40]!r} has {prompt} tokens: give 1 to {capacity}")
    return min(tokens, capacity - prompt + 1)


def _precision(package: Package, tolerance: float | None) -> Precision:
    """The limits for the package's logits, against the checkpoint's own weights."""
    from o2o import formats
    from runtime_py.model.weight_dtype import onnx_weight_dtype, weight_dtype
    from tinyllama.verification.tolerances import TOLERANCE, Precision

    is_onnx = package.model.suffix == ".onnx"
    stored = onnx_weight_dtype(package.model) if is_onnx else weight_dtype(formats.load(package.model))
    exact = stored == "float32"
    return Precision(stored, TOLERANCE if exact and tolerance is None else tolerance).unknown()


def _compare(result: Report, package: Package, steps: Sequence[Step], precision: Precision) -> bool:
    """Report the choices and the logits of one prompt. Return whether they are right."""
    from tinyllama.verification.comparison import parting

    parted = parting(steps)
    same = len(steps) if parted is None else parted
    line = f"the first {same} of {len(steps)} tokens are the same"
    chosen = right = parted is None
    if parted is not None:
        expected, actual = (
            package.tokenizer.decode([token]) for token in (steps[parted].expected, steps[parted].actual)
        )
        chosen = right = precision.explains(steps, parted)
        reason = "as the difference of the logits explains" if right else "which no rounding explains"
        line += f"; then {actual!r}, not {expected!r}, {reason}"
    text = json.dumps(package.tokenizer.decode([step.expected for step in steps]), ensure_ascii=False)
    result.write(f"  text: {text}")
    result.check(chosen, line)
    for stage, part in (("prefill", steps[:1]), ("decode", steps[1:])):
        if part:
            off, noise = max(step.off for step in part), max(step.noise for step in part)
            right &= (holds := precision.holds(part))
            limits = precision.describe()
            result.check(holds, f"{stage}: logits within {off:.1e}, noise {noise:.1e} (required: {limits})")
    return right


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run("verify", lambda: verify(parser().parse_args(arguments)), debug="--debug" in arguments)


if __name__ == "__main__":
    sys.exit(main())
