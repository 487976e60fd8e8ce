"""Measure a 1.1B model: export to a package, filters on 4.4 GB, loading, and agreement with transformers.

    python bench/scale.py [--shape tinyllama-1.1b] [--folder DIR] [--rounds 3] [--only build filter ...]

Makes a random bfloat16 checkpoint (bench/make_checkpoint.py) unless the folder has one, then prints a table:

    build    export of prefill 64, 128, 256 and decode, all filters, bind: a package with float32 weights
    filter   gc.py on its model, from file to file and inside a pipe, in turn with `cat`
    pipe     the README's seven filters on files with external weights
    agree    the package against Hugging Face in float32 (bench/agreement.py), and loading (bench/load.py)

Seconds are medians of the rounds. Memory is the peak resident memory of the largest process. Needs 20 GB of
disk and, for `agree`, 8 GB of memory. The context has 1,024 tokens.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder
    from o2o.cli import interrupt

    interrupt.exit_on_interrupt("scale.py")

import argparse
import json
import os
import shlex
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from export.circle_commands import reshaping
from export.config import CheckpointConfig
from o2o.cli.arguments import Parser
from o2o.cli.command import run

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
LENGTH = 1024  # tokens of context

# Runs a command; prints its exit code, wall and CPU seconds, and the kilobytes of its largest process.
MEASURE = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
code = subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL).returncode
seconds = time.perf_counter() - started
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([code, seconds, used.ru_utime + used.ru_stime, used.ru_maxrss]))
"""


@dataclass(frozen=True)
class Measured:
    """Time and memory of a command.

    Attributes:
        seconds: Wall seconds.
        megabytes: Peak resident memory of its largest process.
        processor: CPU seconds.
    """

    seconds: float
    megabytes: float
    processor: float = 0.0


def measured(script: str, folder: Path) -> Measured:
    """Run a shell script.

    Args:
        script: The script.
        folder: Its working directory.

    Returns:
        Its time and memory.

    Raises:
        SystemExit: The script fails.
    """
    os.sync()
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-c", MEASURE, "bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    code, seconds, processor, kilobytes = json.loads(done.stdout.splitlines()[-1])
    if code:
        raise SystemExit(f"{script.strip()} failed ({code}):\n{done.stderr}")
    return Measured(seconds, kilobytes * 1024 / 1e6, processor)


def _build(checkpoint: Path, folder: Path) -> Iterator[str]:
    """Measure the build of a package."""
    pipeline = shlex.join([sys.executable, str(ROOT / "tinyllama" / "pipeline.py")])
    lengths = "64,128,256"
    options = f"--model {checkpoint} --max-length {LENGTH} --prefill-lengths {lengths}"
    result = measured(f"{pipeline} --package package {options}", folder)
    size = (folder / "package" / "model.circle").stat().st_size / 1e9
    yield _row(f"package of prefill {lengths} and decode, {size:.2f} GB", result, "120 s, 1000 MB")


def _filter(folder: Path, rounds: int) -> Iterator[str]:
    """Measure gc.py against cat."""
    model = folder / "package" / "model.circle"
    scripts = {
        "file to file": (f"gc.py {model} -o out", f"cat {model} > out"),
        "in a pipe": (f"cat {model} | gc.py | cat > out", f"cat {model} | cat | cat > out"),
    }
    for label, (script, plain) in scripts.items():
        pairs = []
        for _ in range(rounds):
            pairs.append((measured(script, folder), measured(plain, folder)))
            (folder / "out").unlink()
        ratios = sorted(a.seconds / b.seconds for a, b in pairs)
        result = Measured(statistics.median(a.seconds for a, _ in pairs), max(a.megabytes for a, _ in pairs))
        spread = f"{statistics.median(ratios):.2f}x cat ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        yield _row(f"gc.py {label}: {spread}", result, "1.5x, 200 MB")


def _pipe(checkpoint: Path, folder: Path, rounds: int) -> Iterator[str]:
    """Measure the seven filters."""
    config = CheckpointConfig.read(checkpoint)
    measured(f"python -m export {checkpoint} -o . --max-length {LENGTH} --prefill-lengths ''", folder)
    script = f"""
    fuse.attention.py < decode_.circle | \\
      reshape.io.py input {reshaping(config, LENGTH)} | \\
      transpose.io.kvcache.py > decode.circle
    merge.circles.py prefill.circle decode.circle | fuse.bmm_lhs_const.py | downcast.input_ids.py | \\
      gc.py > graph.circle
    """
    runs = [measured(script, folder) for _ in range(rounds)]
    result = Measured(statistics.median(r.seconds for r in runs), max(r.megabytes for r in runs))
    yield _row("seven filters on files without weights", result, "6 s")


def _agree(checkpoint: Path, folder: Path) -> Iterator[str]:
    """Run bench/agreement.py and bench/load.py."""
    package = folder / "package"
    for script, *arguments in (
        ("agreement.py", checkpoint, package),
        ("load.py", package, "--rounds", "1", "--cache", folder / "cache"),
    ):
        command = [sys.executable, ROOT / "bench" / script, *arguments]
        yield from subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()


def _row(what: str, result: Measured, target: str) -> str:
    """Format a line of the table."""
    return f"{what:<60} {result.seconds:>7.1f} s {result.megabytes:>7.0f} MB   (at most {target})"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="tinyllama-1.1b")
    parser.add_argument("--folder", type=Path, default=Path("scale"), help="for all files (default: scale)")
    parser.add_argument("--rounds", type=int, default=3)
    parts = ["build", "filter", "pipe", "agree"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    return run("scale.py", lambda: _run(parser.parse_args(argv)))


def _run(args: argparse.Namespace) -> None:
    folder = args.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / args.shape
    if not (checkpoint / "config.json").exists():
        make = [sys.executable, ROOT / "bench" / "make_checkpoint.py", checkpoint, "--shape", args.shape]
        subprocess.run(make, check=True)
    started = time.perf_counter()
    rows = {
        "build": lambda: _build(checkpoint, folder),
        "filter": lambda: _filter(folder, args.rounds),
        "pipe": lambda: _pipe(checkpoint, folder, args.rounds),
        "agree": lambda: _agree(checkpoint, folder),
    }
    for part in args.only:
        for line in rows[part]():
            print(line, flush=True)
    print(f"in all {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
