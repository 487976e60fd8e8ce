"""Compare the README's pipe of seven filters with seven Python processes that only copy.

    python bench/pipe.py [--rounds 5]

Exports the demo model once. Then runs the pipe in turn with seven processes that import numpy and copy stdin
to stdout. These take the minimum time for seven Python programs. Prints the medians of both and of the ratio.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder
    from o2o.cli import interrupt

    interrupt.exit_on_interrupt("pipe.py")

import argparse
import os
import shlex
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence

from o2o.cli.arguments import Parser
from o2o.cli.command import run

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent

SCRIPT = ROOT / "tinyllama" / "tinyllama.py"
EXPORT = f"python {SCRIPT} --mode prefill; python {SCRIPT} --mode decode"
PIPE = r"""
fuse.attention.py < decode_.circle | reshape.io.py input --by_shape [1,16,30,4] [1,16,32,4] \
  | transpose.io.kvcache.py > decode.circle
merge.circles.py prefill.circle decode.circle \
  | fuse.bmm_lhs_const.py | downcast.input_ids.py | gc.py > model.circle
"""
PROGRAM = "import sys, shutil, numpy; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)"
COPY = f"python -c {shlex.quote(PROGRAM)}"
BASELINE = "".join(
    f"{' | '.join(f'{COPY} < decode_.circle' if i == 0 else COPY for i in range(stages))} > copy.circle\n"
    for stages in (3, 4)
)


def _timed(commands: str, folder: str) -> float:
    """Wall seconds of a shell script."""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    started = time.perf_counter()
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env=environment,
        check=True,
        stderr=subprocess.PIPE,
    )
    return time.perf_counter() - started


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    return run("pipe.py", lambda: _run(parser.parse_args(argv).rounds))


def _run(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _timed(EXPORT, folder)
        pairs = [(_timed(PIPE, folder), _timed(BASELINE, folder)) for _ in range(rounds)]
    pipe, baseline = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratios = sorted(a / b for a, b in pairs)
    print(f"seven filters      {pipe:.2f} s (median of {rounds})")
    print(f"seven bare Pythons {baseline:.2f} s")
    print(f"ratio              {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    sys.exit(main())
