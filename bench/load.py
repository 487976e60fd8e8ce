"""How long a package takes to load and how much memory that takes, each time in a fresh process.

    python bench/load.py PACKAGE... [--rounds 3] [--cache DIR]

Three ways: `first` into an empty cache (a big model's weights are packed, in a process of their own), `again`
from that cache, and `--no-cache`. Prints, of each, the median of

    load      seconds until the engine is ready, Python's imports and the tokenizer included
    resident  MB of memory after loading: what of it are mapped files, the system can take back at any time
    private   MB of it that are this process's own and would have to be swapped
    answer    the same two after a prompt and some tokens, when all weights have been touched
    packing   MB that the process which packs had resident at most, mapped files among them

The cache is a folder in the user's cache folder that goes in the end, or --cache DIR. Files that were read
lately come from memory: the first line after a while is slower by what the disk takes.
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
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence

from o2o.cli.arguments import Parser
from o2o.cli.command import run

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "Lily picked up a flower."
TOKENS = 5


def memory() -> tuple[float, float]:
    """(resident, private and written to) of this process, in MB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    sizes = {name: int(rest.split()[0]) * 1024 / 1e6 for name, rest in (line.split(":") for line in lines)}
    return sizes["Rss"], sizes["Private_Dirty"]


def measure(folder: str, cache: bool, started: float) -> dict[str, float]:
    """Load the package in `folder` and let it answer; `started` is time.time() before this process."""
    from runtime_py.generation.generate import generate
    from runtime_py.generation.session import Session
    from runtime_py.package import Package
    from runtime_py.text.detokenizer import Detokenizer

    package = Package.load(folder)
    prompt = package.tokenizer.encode(PROMPT)
    engine = package.engine() if cache else package.engine(disk_cache=None)
    load = time.time() - started
    resident, private = memory()
    list(
        generate(
            Session(engine.open_session()), prompt, Detokenizer(package.tokenizer), max_new_tokens=TOKENS
        )
    )
    answer_resident, answer_private = memory()
    packing = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
    return {
        "load": load,
        "resident": resident,
        "private": private,
        "answer resident": answer_resident,
        "answer private": answer_private,
        "packing": packing,
    }


def in_process(folder: str, place: Path, cache: bool) -> dict[str, float]:
    """`measure` in a process of its own, with the cache at `place`."""
    code = (
        "import sys, json; from bench.load import measure;"
        "print(json.dumps(measure(sys.argv[1], sys.argv[2] == 'True', float(sys.argv[3]))))"
    )
    command = [sys.executable, "-c", code, folder, str(cache), str(time.time())]
    environment = {**os.environ, "O2O_CACHE": str(place), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def rows(folder: str, place: Path, rounds: int) -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = {"first": [], "again": [], "--no-cache": []}
    for _ in range(rounds):
        if place.exists():
            shutil.rmtree(place)
        found["first"].append(in_process(folder, place, True))
        found["again"].append(in_process(folder, place, True))
        found["--no-cache"].append(in_process(folder, place, False))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for those of the process.

    Returns:
        The exit code.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="+", metavar="PACKAGE")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", metavar="DIR", type=Path, help="make the cache in there")
    return run("load.py", lambda: _run(parser.parse_args(argv)))


def _run(args: argparse.Namespace) -> None:
    from runtime_py.engines.disk_cache import user_cache
    from runtime_py.package import Package

    usual = user_cache()
    base = args.cache or (usual.folder if usual else None)
    if base is not None:
        base.mkdir(parents=True, exist_ok=True)
    print(f"{'':<34} {'load':>8} {'resident':>9} {'private':>8} {'answer':>7} {'private':>8} {'packing':>8}")
    for folder in args.packages:
        size = Package.load(folder).model.stat().st_size / 1e6
        with tempfile.TemporaryDirectory(prefix="bench-", dir=base) as place:
            for way, found in rows(folder, Path(place) / "cache", args.rounds).items():
                median = {name: statistics.median(row[name] for row in found) for name in found[0]}
                load, *sizes = median.values()
                shown = " ".join(
                    f"{size:>{width}.0f}" for size, width in zip(sizes, (9, 8, 7, 8, 8), strict=True)
                )
                label = f"{Path(folder).name} ({size:,.0f} MB)"
                print(f"{label:<22} {way:<11} {load:>6.2f} s {shown}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
