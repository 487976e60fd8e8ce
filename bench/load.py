"""Measure loading time and memory of packages, each time in a new process.

    python bench/load.py PACKAGE... [--rounds 3] [--cache DIR]

A package is loaded in three ways: `first` with an empty disk cache (the weights of a big model are packed in
a child process), `again` with that cache, and `--no-cache`. Prints the medians of

    load      seconds until the engine is ready, including Python's imports and the tokenizer
    token     seconds until the first token of a text, counted from the same moment
    resident  MB of resident memory after loading, including mapped files
    private   MB of it that are dirty and private, so that they would have to be swapped
    answer    the same two after a prompt and some tokens, when all weights have been read
    packing   peak resident MB of the process that packs, including mapped files
    peak      largest resident memory of both processes relative to the model's file

The last column is the load relative to the time that reading the model's files takes. `first` includes the
speed trial of the engines (`runtime_py.engines.speed_trial`).

The cache is a temporary folder in the user's cache folder, or in --cache DIR. Files read recently come from
memory: the first measurement after a while includes the disk's time.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder
    from o2o.cli import interrupt

    interrupt.exit_on_interrupt("load.py")

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence

from o2o.cli.arguments import Parser
from o2o.cli.command import run

ROOT = Path(__file__).resolve().parents[1]


def _seconds_to_read(files: Sequence[Path]) -> float:
    """Seconds of one pass over files."""
    begin = time.perf_counter()
    buffer = bytearray(1 << 20)
    for file in files:
        with open(file, "rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass
    return time.perf_counter() - begin


def _in_process(folder: str, place: Path, cache: bool) -> dict[str, float]:
    """`measure` in a new process, with the disk cache in `place`."""
    code = (
        "import sys, json; from bench.load_process import measure;"
        "print(json.dumps(measure(sys.argv[1], sys.argv[2] == 'True', float(sys.argv[3]))))"
    )
    command = [sys.executable, "-c", code, folder, str(cache), str(time.time())]
    environment = {**os.environ, "O2O_CACHE": str(place), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _rows(folder: str, place: Path, rounds: int) -> dict[str, list[dict[str, float]]]:
    """The measurements of all rounds, by condition."""
    results: dict[str, list[dict[str, float]]] = {"first": [], "again": [], "--no-cache": []}
    for _ in range(rounds):
        if place.exists():
            shutil.rmtree(place)
        results["first"].append(_in_process(folder, place, True))
        results["again"].append(_in_process(folder, place, True))
        results["--no-cache"].append(_in_process(folder, place, False))
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="+", metavar="PACKAGE")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", metavar="DIR", type=Path, help="folder for the temporary cache")
    return run("load.py", lambda: _run(parser.parse_args(argv)))


def _run(args: argparse.Namespace) -> None:
    from o2o.streams.disk_cache import user_cache
    from runtime_py.engines.model_file import external_data
    from runtime_py.package import Package

    usual = user_cache()
    base = args.cache or (usual.folder if usual else None)
    if base is not None:
        base.mkdir(parents=True, exist_ok=True)
    print(
        f"{'':<34} {'load':>8} {'token':>8} {'resident':>9} {'private':>8} {'answer':>7} {'private':>8} "
        f"{'packing':>8} {'peak':>6} {'load':>8}"
    )
    for folder in args.packages:
        model = Package.load(folder).model
        files = [model, *external_data(model)]
        size = sum(file.stat().st_size for file in files) / 1e6
        reading = _seconds_to_read(files)
        with tempfile.TemporaryDirectory(prefix="bench-", dir=base) as place:
            for condition, results in _rows(folder, Path(place) / "cache", args.rounds).items():
                median = {name: statistics.median(row[name] for row in results) for name in results[0]}
                peak = median.pop("peak")
                load, token, *sizes = median.values()
                shown = " ".join(
                    f"{size:>{width}.0f}" for size, width in zip(sizes, (9, 8, 7, 8, 8), strict=True)
                )
                label = f"{Path(folder).name} ({size:,.0f} MB)"
                seconds = f"{load:>6.2f} s {token:>6.2f} s"
                ratios = f"{peak / size:>5.2f}x {load / reading:>7.1f}x"
                print(f"{label:<22} {condition:<11} {seconds} {shown} {ratios}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
