"""Compare quantize.weights.py with ai-edge-quantizer: time, memory and file size.

    python bench/quantize.py [FILE.tflite] [--folder DIR] [--recipes dynamic_int8 ...] [--rounds 1]

Without a file, a float32 file of 570 MB is made: a random checkpoint of SmolLM-135M's shape, with a prefill
of 64 tokens and decode. Its embedding and head are not tied, as ai-edge-quantizer copies tied ones for each
signature. ai-edge-quantizer also needs different tensor names in all signatures. Both tools therefore read a
copy with such names.

Seconds are medians of the rounds and include the start of Python. Memory is the peak resident memory of the
process, also relative to the file. For ai-edge-quantizer it includes mapped pages of the file.
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


def _theirs(recipe: str, file: str, output: str) -> None:
    """Quantize with the equivalent recipe of ai-edge-quantizer."""
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


def _make(folder: Path) -> Path:
    """A float32 file of 570 MB in `folder`, made unless it exists."""
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


def _rename(file: Path, copy: Path) -> None:
    """Copy a file, with a unique name for every tensor."""
    from o2o import formats

    model = formats.load(file)
    for index, graph in enumerate(model.graphs):
        values = [*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)]
        for value in {id(value): value for value in values}.values():
            if value.name:  # absent outputs have no name
                value.name = f"{index}/{value.name}"
    formats.save(model, copy)


def _row(who: str, recipe: str, result: Measured, size: int, before: int) -> str:
    share = result.megabytes * 1e6 / before
    return (
        f"{recipe:<22} {who:<20} {result.seconds:>6.1f} s {result.megabytes:>7.0f} MB {share:>6.2f}x"
        f" {size / 1e6:>8.1f} MB"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE.tflite")
    parser.add_argument(
        "--folder", type=Path, default=Path("quantize"), help="for all files (default: quantize)"
    )
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES[:3])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--theirs", nargs=3, help=argparse.SUPPRESS)
    return run("quantize.py", lambda: _run(parser.parse_args(argv)))


def _run(args: argparse.Namespace) -> None:
    if args.theirs:
        _theirs(*args.theirs)
        return
    folder = args.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    _rename(args.file.absolute() if args.file else _make(folder), folder / "renamed.tflite")
    before = (folder / "renamed.tflite").stat().st_size
    title = f"{before / 1e6:.1f} MB of float32"
    print(f"{title:<43} {'time':>8} {'memory':>10} {'of file':>7} {'result':>11}")
    for recipe in args.recipes:
        for who, command in (("quantize.weights.py", OURS), ("ai-edge-quantizer", THEIRS)):
            script = command.format(recipe=recipe, file="renamed.tflite")
            runs = [measured(script, folder) for _ in range(args.rounds)]
            result = Measured(statistics.median(r.seconds for r in runs), max(r.megabytes for r in runs))
            print(_row(who, recipe, result, (folder / "out").stat().st_size, before), flush=True)


if __name__ == "__main__":
    sys.exit(main())
