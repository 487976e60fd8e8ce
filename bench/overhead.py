"""What a decode step takes beyond the engine's own run: Python, and bytes that are moved.

    python bench/overhead.py PACKAGE... [--engine litert] [--context 100] [--steps 200]

Feeds random ids one at a time and prints the median step, the median of the runtime's own call within it, and
what is left, in microseconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from runtime_py.package import Package

CALLS = {"litert": ("_model", "run_by_index"), "onnx": ("_session", "run_with_iobinding")}
"""Of each engine: where it keeps what runs the model, and the call."""


class Timed:
    """What `runner` is, with the seconds of each call of `name` kept."""

    def __init__(self, runner: Any, name: str) -> None:
        self._runner, self._call = runner, getattr(runner, name)
        self.seconds: list[float] = []
        setattr(self, name, self._timed)

    def _timed(self, *args: Any) -> None:
        started = time.perf_counter()
        self._call(*args)
        self.seconds.append(time.perf_counter() - started)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)


def measure(package: Package, engine: str, context: int, steps: int) -> tuple[list[float], list[float]]:
    """Seconds of each step, and of the runtime's own call in it."""
    started = package.engine(engine=engine)
    owner, call = CALLS[engine]
    timed = Timed(getattr(started, owner), call)
    calls = (*getattr(started, "_decodes", {}).values(), getattr(started, "_step", None))
    for holder in filter(None, calls):
        setattr(holder, owner, timed)
    ids = np.random.default_rng(0).integers(0, started.vocab_size, context + steps).tolist()
    started.prefill(ids[:context])
    timed.seconds.clear()
    whole = [_seconds(lambda at=at: started.decode(ids[at], at)) for at in range(context, context + steps)]
    started.close()
    return whole, timed.seconds


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packages", nargs="+", metavar="PACKAGE")
    parser.add_argument("--engine", choices=sorted(CALLS), default="litert")
    parser.add_argument("--context", type=int, default=100)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args(argv)
    print(f"{'package':<48} {'step':>10} {'run':>10} {'left':>8}   us")
    for folder in args.packages:
        whole, runs = measure(Package.load(folder), args.engine, args.context, args.steps)
        left = statistics.median(a - b for a, b in zip(whole, runs, strict=True))
        step, run = (statistics.median(times) * 1e6 for times in (whole, runs))
        print(f"{folder[-48:]:<48} {step:>10,.0f} {run:>10,.0f} {left * 1e6:>8,.0f}")


if __name__ == "__main__":
    main()
