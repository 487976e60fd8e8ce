"""How long a decode step takes on one thread and on all, measured in turn: from what size do threads pay?

    python bench/threads.py PACKAGE... [--rounds 9] [--engine onnx]

Prints the median step of each package and the ratio. `runtime_py.engines.selection.WORTH_SHARING` is chosen
by it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

from runtime_py.engines import Engine
from runtime_py.engines.selection import ASKABLE, AUTO, cores
from runtime_py.package import Package


def step(engine: Engine) -> float:
    """Seconds of one decode step, the mean over a whole cache."""
    started = time.perf_counter()
    for position in range(engine.capacity):
        engine.decode(1, position)
    return (time.perf_counter() - started) / engine.capacity


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packages", nargs="+", metavar="PACKAGE")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--engine", choices=ASKABLE, default=AUTO)
    args = parser.parse_args(argv)
    print(f"{'package':<24} {'MB':>6} {'1 thread':>10} {f'{cores()} threads':>10}  ratio")
    for folder in args.packages:
        package = Package.load(folder)
        engines = [package.engine(threads, engine=args.engine) for threads in (1, cores())]
        rounds = [[step(engine) for engine in engines] for _ in range(args.rounds)]
        one, all_ = (statistics.median(times) for times in zip(*rounds, strict=True))
        ratio = statistics.median(a / b for a, b in rounds)
        size = package.model.stat().st_size / 1e6
        print(f"{folder:<24} {size:>6.1f} {one * 1e3:>7.2f} ms {all_ * 1e3:>7.2f} ms  {ratio:.2f}")
        for engine in engines:
            engine.close()


if __name__ == "__main__":
    main()
