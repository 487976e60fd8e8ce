"""Compare the README's pipe of seven filters with `o2o pipe`, and with seven processes that only copy.

    python bench/pipe.py [--rounds 5] [--repeat 1]

Exports the demo model once. Then runs in turn: the pipe; the same pipelines in one process, by `o2o pipe -f`;
and seven processes that import numpy and copy stdin to stdout. These take the minimum time for seven Python
programs. Prints the medians of the times and of the ratios. The two models must be equal, byte for byte.
--repeat N runs the second pipeline's gc.py N times, for a longer pipe.
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
from o2o.errors import O2oError

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
ONE_PROCESS = "o2o pipe -f {file}"
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
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="run gc.py N times (%(default)s)")
    args = parser.parse_args(argv)
    return run("pipe.py", lambda: _run(args.rounds, args.repeat))


def _run(rounds: int, repeat: int) -> None:
    script = PIPE.replace("| gc.py", "| gc.py" * repeat)
    with tempfile.TemporaryDirectory() as folder:
        _timed(EXPORT, folder)
        Path(folder, "model.pipe").write_text(script, encoding="utf-8")
        model = Path(folder, "model.circle")
        times: list[tuple[float, float, float]] = []
        for _ in range(rounds):
            processes = _timed(script, folder)
            data = model.read_bytes()
            one = _timed(ONE_PROCESS.format(file="model.pipe"), folder)
            if model.read_bytes() != data:
                raise O2oError("o2o pipe wrote another model than the pipe")
            times.append((processes, one, _timed(BASELINE, folder)))
    pipe, one, baseline = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"{6 + repeat} filters, a pipe  {pipe:.2f} s (median of {rounds})")
    print(f"o2o pipe           {one:.2f} s: {_ratios([a / b for a, b, _ in times])} times as fast")
    print(f"seven bare Pythons {baseline:.2f} s: {_ratios([a / b for a, _, b in times])} of the pipe's time")


def _ratios(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    sys.exit(main())
