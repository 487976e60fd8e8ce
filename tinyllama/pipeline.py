#!/usr/bin/env python3
"""Make a package of a checkpoint: the guide's own commands, with the shapes of the model at hand.

    python tinyllama/pipeline.py --package tinyllama                   # the demo model
    python tinyllama/pipeline.py --model DIR_OR_HUB_ID --package my-model --max-length 256

Every command is shown before it runs. The package appears when all of them succeeded.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    # Run by path, Python looks for modules in this folder first, where `tinyllama` is a script.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from export.hub import resolve
from export.jobs import Job, jobs, lengths_of
from export.package import fill
from export.resources import ITEM_SIZE, check_disk, needs
from o2o import command, errors
from o2o.weights.checkpoint import open_checkpoint

if TYPE_CHECKING:
    from export.cache import CacheForm

HERE = Path(__file__).resolve().parent

EXPORT = """
{python} -m export {model} -o . --max-length {length} --prefill-lengths {lengths} --cache {cache} \\
  --dtype {dtype}
"""
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
    steps = [
        EXPORT.format(
            python=shlex.quote(sys.executable),
            model=shlex.quote(str(checkpoint)),
            length=length,
            lengths=",".join(str(job.tokens) for job in onto_caches) or "''",
            cache=cache,
            dtype=dtype,
        )
    ]
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
    """Run the commands in a folder of their own, then fill `package`, its model last.

    Raises O2oError when one fails, or the disk has no room for the model.
    """
    steps = commands(checkpoint, length, lengths, cache, dtype)
    tensors = open_checkpoint(checkpoint).tensors
    check_disk(package, needs(tensors, 0, 1, dtype, embed=True).bound, "the model")
    package.mkdir(parents=True, exist_ok=True)  # to build in the same file system
    with tempfile.TemporaryDirectory(prefix=".build-", dir=package) as build_:
        bin_ = Path(sys.executable).parent
        environment = {**os.environ, "PATH": f"{bin_}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
        shell = ["bash", "-v", "-euo", "pipefail", "-c", steps]
        if code := subprocess.run(shell, cwd=build_, env=environment, check=False).returncode:
            hint = "; attention that cannot be fused can stay as it is: --cache static" * (cache == "concat")
            raise errors.ModelError(f"a command failed (exit code {code}), {package} is as it was{hint}")
        fill(package, checkpoint)
        os.replace(Path(build_, "model.circle"), package / "model.circle")
    print(f"pipeline.py: {package} is ready: python -m runtime_py.run {package}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = command.Parser(
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
        type=lengths_of,
        help="tokens that one prefill reads, a graph each (those of 64,128,256 that fit, else T)",
    )
    parser.add_argument(
        "--cache", choices=("concat", "static"), default="concat", help="static: leave attention unfused"
    )
    parser.add_argument(
        "--dtype", choices=tuple(ITEM_SIZE), default="float32", help="of the model's matrices"
    )
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")

    def body() -> None:
        args = parser.parse_args(arguments)
        checkpoint = resolve(args.model).absolute()
        build(checkpoint, args.package, args.max_length, args.prefill_lengths, args.cache, args.dtype)

    return command.run("pipeline.py", body, debug="--debug" in arguments)


if __name__ == "__main__":
    sys.exit(main())
