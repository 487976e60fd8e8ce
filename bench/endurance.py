"""Endurance of one process: generations, loads and closes: `python -m bench.endurance PACKAGE`.

After a warm-up, resident memory, open descriptors and memory mappings must stay flat: the slope of a
regression line, times the number of repetitions, is below a bound. The first and the last text are equal.
Exits with 1 otherwise.
"""

from __future__ import annotations

from o2o.cli import interrupt

if __name__ == "__main__":
    interrupt.exit_on_interrupt("endurance.py")  # before the slow imports

import argparse
import gc
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from o2o.cli.arguments import Parser, positive_int
from o2o.cli.command import run
from o2o.errors import ModelError, UsageError
from runtime_py.package import Package

BOUNDS = {"resident bytes": 16e6, "descriptors": 2.0, "mappings": 20.0}
"""The largest growth over all repetitions."""
WARM_UP, SAMPLES = 0.2, 50
"""The share of repetitions that are not measured, and the number of measurements."""
SMALLEST = 50
"""The smallest number of repetitions. A process grows in its first ones, as caches fill."""
PROMPT = "Lily picked up a flower."


def measure() -> list[float]:
    """Measure this process.

    Returns:
        The values of `BOUNDS`, in its order.
    """
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    mappings = len(Path("/proc/self/maps").read_text().splitlines())
    return [float(resident), float(len(os.listdir("/proc/self/fd"))), float(mappings)]


def endure(name: str, count: int, once: Callable[[], str]) -> bool:
    """Repeat an action, and print how much the process grew.

    Args:
        name: The name of the action.
        count: The number of repetitions.
        once: The action, which returns a text.

    Returns:
        Whether nothing grew above its bound, and the first and the last text are equal.
    """
    first = text = once()
    rows = []
    for index in range(count):
        text = once()
        if index >= WARM_UP * count and index % max(1, count // SAMPLES) == 0:
            rows.append([float(index), *measure()])
    samples = np.array(rows)
    good = first == text
    print(f"{name}: {count} times, the first and the last text are {'equal' if good else 'DIFFERENT'}")
    for column, (quantity, bound) in enumerate(BOUNDS.items(), 1):
        growth = float(np.polyfit(samples[:, 0], samples[:, column], 1)[0]) * count
        flat = growth <= bound
        good &= flat
        print(f"  {quantity:15} {growth:+12,.1f}, bound {bound:,.0f}{'' if flat else '  GROWS'}")
    return good


def parser() -> Parser:
    """Make the command line's parser.

    Returns:
        The parser.
    """
    parser = Parser(prog="python -m bench.endurance", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("package", metavar="PACKAGE", help="a package; Circle runs on each engine")
    add("--engines", metavar="NAME", nargs="+", default=["litert", "onnx"], help="(litert onnx)")
    add("--generations", metavar="N", type=positive_int, default=2000, help="(%(default)s)")
    add("--loads", metavar="N", type=positive_int, default=200, help="(%(default)s)")
    add("--tokens", metavar="N", type=positive_int, default=16, help="of each text (%(default)s)")
    return parser


def _run(args: argparse.Namespace) -> None:
    from runtime_py.engines.options import EngineOptions

    if min(args.generations, args.loads) < SMALLEST:
        raise UsageError(f"--generations and --loads must be at least {SMALLEST}: fewer show no slope")
    good = True
    for engine in args.engines:
        options = EngineOptions(engine=engine, threads=1, disk_cache=None)

        def load(options: EngineOptions = options) -> str:
            with Package.load(args.package, options=options) as package:
                return package.generate(PROMPT, max_new_tokens=args.tokens)

        with Package.load(args.package, options=options) as package:
            prompts = [PROMPT, f"{PROMPT} It was red.", "Once"]

            def generate(package: Package = package, prompts: Sequence[str] = prompts) -> str:
                return "".join(package.generate(prompt, max_new_tokens=args.tokens) for prompt in prompts)

            good &= endure(f"{engine}, {len(prompts)} generations", -(-args.generations // 3), generate)
        good &= endure(f"{engine}, load and close", args.loads, load)
    if not good:
        raise ModelError("the process grew, or texts differ: see above")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    return run("endurance.py", lambda: _run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
