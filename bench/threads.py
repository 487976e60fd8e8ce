"""Compare decode on one thread and on all cores, measured in turn.

    python bench/threads.py PACKAGE... [--rounds 9] [--engine onnx]

Prints the median step of each package and the ratio.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder
    from o2o.cli import interrupt

    interrupt.exit_on_interrupt("threads.py")

import argparse
import statistics
import time
from collections.abc import Sequence

from o2o.cli.arguments import Parser
from o2o.cli.command import run
from o2o.cores import cores
from runtime_py.engine_flags import ENGINE_NAMES
from runtime_py.engines.engine import EngineSession
from runtime_py.engines.options import AUTO
from runtime_py.package import Package


def _step(session: EngineSession) -> float:
    """Seconds of one decode step, the mean over a whole cache."""
    started = time.perf_counter()
    for position in range(session.capacity):
        session.decode(1, position)
    return (time.perf_counter() - started) / session.capacity


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="+", metavar="PACKAGE")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--engine", choices=ENGINE_NAMES, default=AUTO)
    return run("threads.py", lambda: _run(parser.parse_args(argv)))


def _run(args: argparse.Namespace) -> None:
    print(f"{'package':<24} {'MB':>6} {'1 thread':>10} {f'{cores()} threads':>10}  ratio")
    for folder in args.packages:
        package = Package.load(folder)
        engines = [package.engine(threads=threads, engine=args.engine) for threads in (1, cores())]
        sessions = [engine.open_session() for engine in engines]
        rounds = [[_step(session) for session in sessions] for _ in range(args.rounds)]
        one, all_ = (statistics.median(times) for times in zip(*rounds, strict=True))
        ratio = statistics.median(a / b for a, b in rounds)
        size = package.model.stat().st_size / 1e6
        print(f"{folder:<24} {size:>6.1f} {one * 1e3:>7.2f} ms {all_ * 1e3:>7.2f} ms  {ratio:.2f}")
        for session, engine in zip(sessions, engines, strict=True):
            session.close()
            engine.close()


if __name__ == "__main__":
    sys.exit(main())
