#!/usr/bin/env python3
"""Make a package of a checkpoint: the guide's own commands, with the shapes of the model at hand.

    python export/pipeline.py --package tinyllama                   # the demo model
    python export/pipeline.py --model DIR_OR_HUB_ID --package my-model --max-length 256
    python export/pipeline.py --format tflite --quantize dynamic_int8 --package my-model --max-length 256

Every command is shown before it runs. The package appears when all of them succeeded.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    # Run by path, Python looks for modules in this folder first, where `tinyllama` is a script.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    from o2o.cli.interrupt import exit_on_interrupt

    exit_on_interrupt("pipeline.py")

from export import shell
from export.hub import resolve
from export.jobs import Job, jobs
from export.package_files import fill
from export.resources import ITEM_SIZE, check_disk, needs
from export.tflite_pipeline import Conversion
from o2o import errors
from o2o.cli import command
from o2o.cli.arguments import Parser, number_list
from o2o.quantization.recipes import RECIPES
from o2o.weights.checkpoint import open_checkpoint

if TYPE_CHECKING:
    from export.traced_cache import CacheForm

HERE = Path(__file__).resolve().parents[1] / "tinyllama"

FUSE_PREFILL = """
fuse.attention.py < {raw} | transpose.io.kvcache.py > {fused}
"""
FUSE_DECODE = """
fuse.attention.py < decode_.circle \\
  | reshape.io.py input --by_shape {exported} {resized} \\
  | transpose.io.kvcache.py > decode.circle
"""
MERGE = """
merge.circles.py {graphs} \\
  | fuse.bmm_lhs_const.py | downcast.input_ids.py | gc.py | bind.weights.py -o model.circle
"""


def commands(
    checkpoint: Path, length: int, lengths: Sequence[int] | None, cache: CacheForm, dtype: str
) -> str:
    """The guide for the checkpoint in this folder, as shell. Raises ModelError for a folder without one.

    length, lengths, cache: see `export.jobs`. With `concat` decode has two rows of cache less at first and is
    reshaped ([1,16,30,4] and [1,16,32,4] are those of the demo model); `static` leaves attention as it is
    exported, for models with biases or norms in it that Circle's ATTENTION has no operand for. dtype: of the
    model's matrices.
    """
    try:
        config = json.loads((checkpoint / "config.json").read_text())
        heads = config.get("num_key_value_heads") or config["num_attention_heads"]
        size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    except (OSError, ValueError, KeyError) as error:
        raise errors.ModelError(f"{checkpoint}: no usable config.json ({error})") from error
    *prefills, _decode = todo = jobs(length, lengths, cache)
    onto_caches = [job for job in prefills if job.capacity is not None]
    lengths_ = ",".join(str(job.tokens) for job in onto_caches)
    steps = [shell.export(checkpoint, length, lengths_, cache, "--dtype", dtype)]
    if cache == "concat":
        steps += [FUSE_PREFILL.format(raw=job.file, fused=_fused(job)) for job in onto_caches]
        exported, resized = (f"[1,{heads},{rows},{size}]" for rows in (length - 2, length))
        steps.append(FUSE_DECODE.format(exported=exported, resized=resized))
    return "".join([*steps, MERGE.format(graphs=" ".join(map(_fused, todo)))])


def _fused(job: Job) -> str:
    """The file of what the filters make of `job`."""
    return job.file.replace("_.circle", ".circle")


def build(
    checkpoint: Path,
    package: Path,
    length: int,
    lengths: Sequence[int] | None = None,
    cache: CacheForm = "concat",
    dtype: str = "float32",
) -> None:
    """Make the package of Circle. Raises O2oError when a command fails, or the disk has no room for it."""
    hint = "; attention that cannot be fused can stay as it is: --cache static" * (cache == "concat")
    steps = commands(checkpoint, length, lengths, cache, dtype)
    size = needs(open_checkpoint(checkpoint).tensors, 0, 1, dtype, embed=True).bound
    _build(checkpoint, package, steps, "model.circle", size, hint)


def build_tflite(
    checkpoint: Path, package: Path, length: int, lengths: Sequence[int] | None, recipe: str
) -> None:
    """Make the package of TFLite, with the signatures of AI Edge. Raises as `build`, and for unknown recipes.

    lengths: None for those of 64,128,256 that fit, else one that takes all of `length` tokens.
    """
    if lengths is None:
        lengths = [job.tokens for job in jobs(length, None, "static") if job.signature != "decode"]
    conversion = Conversion(checkpoint, length, lengths, recipe)
    parameters = needs(open_checkpoint(checkpoint).tensors, 0, 1, "float32", embed=True).parameters
    _build(checkpoint, package, conversion.commands(), "model.tflite", conversion.size(parameters))


def _build(checkpoint: Path, package: Path, steps: str, model: str, size: int, hint: str = "") -> None:
    """Run the commands in a folder of their own, then fill `package`, its `model` of `size` last, alone."""
    check_disk(package, size, "the model")
    package.mkdir(parents=True, exist_ok=True)  # to build in the same file system
    with shell.workshop(package) as folder:
        if code := shell.run(steps, folder):
            raise shell.failed(code, f"{package} is as it was{hint}")
        fill(package, checkpoint)
        os.replace(folder / model, package / model)
    for other in {"model.circle", "model.tflite"} - {model}:
        if (package / other).exists():  # of an earlier build: which of them is to run?
            (package / other).unlink()
            print(f"pipeline.py: removed {package / other}, which {model} replaces", file=sys.stderr)
    print(f"pipeline.py: {package} is ready: python -m runtime_py.run {package}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(
        prog="pipeline.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        metavar="DIR_OR_HUB_ID",
        default=HERE / "demo" / "checkpoint",
        help="default: the demo model",
    )
    parser.add_argument(
        "--package", metavar="DIR", type=Path, default=HERE, help="folder to fill (%(default)s)"
    )
    parser.add_argument(
        "--max-length", metavar="T", type=int, default=32, help="context in tokens (%(default)s)"
    )
    parser.add_argument(
        "--prefill-lengths",
        metavar="A,B",
        type=number_list,
        help="tokens that one prefill reads, a graph each (those of 64,128,256 that fit, else T)",
    )
    parser.add_argument(
        "--cache", choices=("concat", "static"), default="concat", help="static: leave attention unfused"
    )
    parser.add_argument(
        "--dtype", choices=tuple(ITEM_SIZE), default="float32", help="of the model's matrices"
    )
    parser.add_argument(
        "--format", choices=("circle", "tflite"), default="circle", help="of the model (%(default)s)"
    )
    parser.add_argument(
        "--quantize",
        metavar="RECIPE",
        default="none",
        help=f"with --format tflite: {', '.join(RECIPES)} (%(default)s)",
    )
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")

    def body() -> None:
        args = parser.parse_args(arguments)
        if args.format == "circle" and args.quantize != "none":
            raise errors.UsageError("--quantize goes with --format tflite")
        if args.format == "tflite" and args.dtype != "float32":
            raise errors.UsageError(f"--format tflite: --quantize {args.dtype} in the place of --dtype")
        checkpoint = resolve(args.model).absolute()
        sizes = (checkpoint, args.package, args.max_length, args.prefill_lengths)
        with shell.ended_by_signals():
            if args.format == "tflite":
                build_tflite(*sizes, args.quantize)
            else:
                build(*sizes, args.cache, args.dtype)

    return command.run("pipeline.py", body, debug="--debug" in arguments)


if __name__ == "__main__":
    sys.exit(main())
