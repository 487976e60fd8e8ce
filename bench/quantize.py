"""quantize.weights.py and ai-edge-quantizer on the same file: how long, how much memory, how large a result?

    python bench/quantize.py [FILE.tflite] [--folder DIR] [--recipes dynamic_int8 ...] [--rounds 1]

Without a file, one of 570 MB is made first: a random checkpoint of SmolLM-135M's shape (with two tables for
embedding and logits, as ai-edge-quantizer makes a copy for each signature of one that is both), as float32
with a prefill of 64 tokens and decode. It also wants names that no two tensors of a file share, so both are
given a copy in which each signature's tensors have names of their own.

Seconds are medians of the rounds, the interpreter's start included. Memory is the most that the process had
resident, also as a share of the file; of ai-edge-quantizer's, pages of the file that it maps are a part.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder
    from o2o.cli import interrupt

    interrupt.exit_on_interrupt("quantize.py")

import argparse
import statistics
import subprocess
from collections.abc import Sequence

from bench.scale import ROOT, Measured, measured
from o2o.cli.arguments import Parser
from o2o.cli.command import run

OURS = "quantize.weights.py --recipe {recipe} {file} -o out"
THEIRS = f"{sys.executable} {Path(__file__)} --theirs {{recipe}} {{file}} out"
BLOCKS = {"dynamic_int4_block32": 32, "dynamic_int4_block128": 128}
RECIPES = ("dynamic_int8", "weight_only_int8", *BLOCKS)


def theirs(recipe: str, file: str, output: str) -> None:
    """ai-edge-quantizer's recipe that means the same."""
    from ai_edge_quantizer import qtyping, quantizer, recipe_manager

    manager = recipe_manager.RecipeManager()
    every = {"regex": ".*", "operation_name": qtyping.TFLOperationName.ALL_SUPPORTED}
    if recipe in BLOCKS:
        granularity = qtyping.QuantGranularity[f"BLOCKWISE_{BLOCKS[recipe]}"]
        manager.add_dynamic_config(**every, num_bits=4, granularity=granularity)
    elif recipe == "weight_only_int8":
        manager.add_weight_only_config(**every, num_bits=8)
    else:
        manager.add_dynamic_config(**every, num_bits=8)
    result = quantizer.Quantizer(file, manager.get_quantization_recipe()).quantize()
    result.export_model(Path(output), overwrite=True)


def make(folder: Path) -> Path:
    """A file of 570 MB in `folder`, unless it is there."""
    file, checkpoint = folder / "float32.tflite", folder / "135m"
    if not file.exists():
        make_ = [
            "bench/make_checkpoint.py",
            str(checkpoint),
            "--shape",
            "135m",
            "--vocab",
            "32000",
            "--no-tied",
        ]
        convert = ["tinyllama/convert_to_tflite.py", f"--checkpoint_path={checkpoint}", "--quantize=false"]
        convert += ["--prefill_seq_lens=64", "--kv_cache_max_len=256", f"--output_path={file}"]
        for script, *arguments in (make_, convert):
            subprocess.run([sys.executable, ROOT / script, *arguments], check=True)
    return file


def rename(file: Path, copy: Path) -> None:
    """`copy` is `file` with another name for every tensor."""
    from o2o import formats

    model = formats.load(file)
    for index, graph in enumerate(model.graphs):
        values = [*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)]
        for value in {id(value): value for value in values}.values():
            if value.name:  # not the outputs that are absent
                value.name = f"{index}/{value.name}"
    formats.save(model, copy)


def row(who: str, recipe: str, told: Measured, size: int, before: int) -> str:
    share = told.megabytes * 1e6 / before
    return (
        f"{recipe:<22} {who:<20} {told.seconds:>6.1f} s {told.megabytes:>7.0f} MB {share:>6.2f}x"
        f" {size / 1e6:>8.1f} MB"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for those of the process.

    Returns:
        The exit code.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE.tflite")
    parser.add_argument("--folder", type=Path, default=Path("quantize"), help="for all files (%(default)s)")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES[:3])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--theirs", nargs=3, help=argparse.SUPPRESS)
    return run("quantize.py", lambda: _run(parser.parse_args(argv)))


def _run(args: argparse.Namespace) -> None:
    if args.theirs:
        theirs(*args.theirs)
        return
    folder = args.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    rename(args.file.absolute() if args.file else make(folder), folder / "renamed.tflite")
    before = (folder / "renamed.tflite").stat().st_size
    title = f"{before / 1e6:.1f} MB of float32"
    print(f"{title:<43} {'time':>8} {'memory':>10} {'of file':>7} {'result':>11}")
    for recipe in args.recipes:
        for who, command in (("quantize.weights.py", OURS), ("ai-edge-quantizer", THEIRS)):
            script = command.format(recipe=recipe, file="renamed.tflite")
            runs = [measured(script, folder) for _ in range(args.rounds)]
            told = Measured(statistics.median(r.seconds for r in runs), max(r.megabytes for r in runs))
            print(row(who, recipe, told, (folder / "out").stat().st_size, before), flush=True)


if __name__ == "__main__":
    sys.exit(main())
