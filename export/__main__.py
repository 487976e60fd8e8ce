"""Export a checkpoint: `python -m export MODEL -o DIR`.

    python -m export TinyLlama/TinyLlama-1.1B-Chat-v1.0 -o tinyllama-1.1b --max-length 1024

Writes the prefill graphs, one for each length, the decode graph, and the tokenizer's files. The filters make
a package of them; `make package MODEL=... PACKAGE=...` does all of it.
"""

from __future__ import annotations

if __name__ == "__main__":
    from o2o.cli.interrupt import exit_on_interrupt

    exit_on_interrupt("export")

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from export.hub import resolve
from export.jobs import PREFILL_LENGTHS, Job, jobs
from export.package_files import fill
from export.resources import ITEM_SIZE, check_disk, gigabytes, needs, processes
from o2o.cli import command
from o2o.cli.arguments import Parser, number_list
from o2o.cli.progress import progress
from o2o.cli.text import counted, listed
from o2o.errors import ModelError, O2oError, UsageError
from o2o.weights.checkpoint import open_checkpoint

PROGRAM = "python -m export"


def parser() -> argparse.ArgumentParser:
    parser = Parser(prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder of a checkpoint, or its id on the Hugging Face hub")
    add("-o", "--output", metavar="DIR", required=True, help="folder for the graphs")
    add("--max-length", metavar="S", type=int, default=1024, help="tokens of context (%(default)s)")
    add(
        "--prefill-lengths",
        metavar="A,B",
        type=number_list,
        help=f"how many tokens one prefill reads (those of {','.join(map(str, PREFILL_LENGTHS))} that fit)",
    )
    add(
        "--cache",
        choices=("concat", "static"),
        default="concat",
        help="static: leave attention as it is, for models that fuse.attention.py does not take",
    )
    add(
        "--weights",
        choices=("embed", "external"),
        default="external",
        help="external: the graphs refer to the checkpoint, until bind.weights.py (%(default)s)",
    )
    add(
        "--dtype",
        choices=tuple(ITEM_SIZE),
        default="float32",
        help="of matrices in the model; computing is float32 all the same (%(default)s)",
    )
    add(
        "--attn-implementation",
        metavar="NAME",
        default="eager",
        help="transformers' own; or grouped, flash, flash:Q,KV (blocks of queries and keys): attention as "
        "one operator, for any architecture, with --cache static (%(default)s)",
    )
    add("--jobs", metavar="N", type=int, help="graphs to export at a time (as cores and memory allow)")
    add("--debug", action="store_true", help="show warnings, and where an error comes from")
    return parser


def export(args: argparse.Namespace) -> None:
    """Say what it takes, then do it."""
    started = time.monotonic()
    directory = resolve(args.model)
    checkpoint = open_checkpoint(directory)
    todo = jobs(args.max_length, args.prefill_lengths, args.cache)
    kind, layers, positions = _architecture(directory)
    if positions and args.max_length > positions:
        raise UsageError(f"--max-length {args.max_length}: this {kind} model has {positions} positions")
    needed = needs(checkpoint.tensors, layers, len(todo), args.dtype, args.weights == "embed")
    dtypes = listed(sorted({tensor.dtype for tensor in checkpoint.tensors.values()}))
    _say(
        f"{directory}: {kind}, {layers} layers, {needed.parameters:,} parameters, "
        f"{gigabytes(needed.stored)} of {dtypes}"
    )
    _say(
        f"{listed([job.signature for job in todo])} of {args.max_length} tokens: "
        f"about {gigabytes(needed.graphs)} on disk ({gigabytes(needed.bound)} when they are one model with "
        f"its weights), {gigabytes(needed.memory)} of memory for each at a time"
    )
    check_disk(args.output, needed.graphs, counted(len(todo), "graph"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    at_once = processes(needed.memory, min(args.jobs or cores, len(todo)))
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    _run(todo, at_once, directory, folder, args)
    fill(folder, directory)
    size = sum((folder / job.file).stat().st_size for job in todo)
    files = listed([job.file for job in todo])
    _say(f"wrote {files} into {folder}, {gigabytes(size)} in {time.monotonic() - started:.1f} s")


def _architecture(directory: Path) -> tuple[str, int, int]:
    """Model type, number of layers, and of positions (0: any), as far as config.json tells, in GPT-2's words
    or in those of all others."""
    try:
        config = json.loads((directory / "config.json").read_text())
        config = config.get("text_config", config)
        positions = config.get("max_position_embeddings") or config.get("n_positions") or 0
        layers = config.get("n_layer") or config["num_hidden_layers"]
        return str(config["model_type"]), int(layers), int(positions)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{directory}: no usable config.json ({error!r})") from error


def _run(todo: Sequence[Job], at_once: int, directory: Path, folder: Path, args: argparse.Namespace) -> None:
    """Export all of `todo`, that many at a time, in processes that give their memory back."""
    how = (directory, folder, args.attn_implementation, args.weights, args.dtype, args.debug)
    with progress("export", len(todo), "graph") as done:
        if at_once == 1:
            for job in todo:
                job.export(*how)
                done(1)
            return
        with ProcessPoolExecutor(at_once, multiprocessing.get_context("spawn")) as pool:
            try:
                futures = [pool.submit(job.export, *how) for job in todo]
                for future in as_completed(futures):
                    future.result()
                    done(1)
            except BrokenProcessPool:
                raise O2oError(
                    "a process was killed while it exported, most likely for want of memory: try --jobs 1"
                ) from None
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _say(line: str) -> None:
    print(f"export: {line}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)

    return command.run("export", lambda: export(parser().parse_args(arguments)), debug="--debug" in arguments)


if __name__ == "__main__":
    sys.exit(main())
