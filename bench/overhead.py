"""Measure the overhead of a decode step: time in addition to the runtime's own call.

    python bench/overhead.py PACKAGE... [--engine litert] [--context 100] [--steps 200]

Feeds random ids one at a time. Prints the median step, the median of the runtime's own call within it, and
the difference, in microseconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder
    from o2o.cli import interrupt

    interrupt.exit_on_interrupt("overhead.py")

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import numpy as np

from o2o.cli.arguments import Parser
from o2o.cli.command import run
from runtime_py.package import Package

ENGINES = ("litert", "onnx")


def _runtime_call(engine: str) -> tuple[Any, str]:
    """The runtime's class, and the name of its method that runs the model."""
    if engine == "litert":
        from ai_edge_litert.compiled_model import CompiledModel

        return CompiledModel, "run_by_index"
    from onnxruntime import InferenceSession

    return InferenceSession, "run_with_iobinding"


@contextmanager
def timed(owner: Any, name: str) -> Iterator[list[float]]:
    """Measure each call of a method within the block.

    Args:
        owner: The class.
        name: The method's name.

    Yields:
        A list that receives the seconds of each call.
    """
    method, seconds = getattr(owner, name), []

    def call(self: Any, *args: Any) -> Any:
        started = time.perf_counter()
        result = method(self, *args)
        seconds.append(time.perf_counter() - started)
        return result

    setattr(owner, name, call)
    try:
        yield seconds
    finally:
        setattr(owner, name, method)


def measure(package: Package, engine: str, context: int, steps: int) -> tuple[list[float], list[float]]:
    """Measure decode steps.

    Args:
        package: The package.
        engine: One of `ENGINES`.
        context: The number of tokens before the first step.
        steps: The number of steps.

    Returns:
        Seconds of each step, and of the runtime's call within it.
    """
    with (
        closing(package.engine(engine=engine)) as loaded,
        closing(loaded.open_session()) as session,
        timed(*_runtime_call(engine)) as seconds,
    ):
        ids = np.random.default_rng(0).integers(0, session.vocab_size, context + steps).tolist()
        session.prefill(ids[:context])
        seconds.clear()
        positions = range(context, context + steps)
        whole = [_seconds(lambda at=at: session.decode(ids[at], at)) for at in positions]
        return whole, list(seconds)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="+", metavar="PACKAGE")
    parser.add_argument("--engine", choices=ENGINES, default="litert")
    parser.add_argument("--context", type=int, default=100)
    parser.add_argument("--steps", type=int, default=200)
    return run("overhead.py", lambda: _run(parser.parse_args(argv)))


def _run(args: argparse.Namespace) -> None:
    print(f"{'package':<48} {'step':>10} {'run':>10} {'rest':>8}   us")
    for folder in args.packages:
        whole, runs = measure(Package.load(folder), args.engine, args.context, args.steps)
        rest = statistics.median(a - b for a, b in zip(whole, runs, strict=True))
        step, run = (statistics.median(times) * 1e6 for times in (whole, runs))
        print(f"{folder[-48:]:<48} {step:>10,.0f} {run:>10,.0f} {rest * 1e6:>8,.0f}")


if __name__ == "__main__":
    sys.exit(main())
