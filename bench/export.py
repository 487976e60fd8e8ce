"""Measure time and memory of the export of a graph, by number of layers.

    python bench/export.py [--layers 2 8 22 44] [--forms prefill chunk concat static] [--shape tinyllama-1.1b]

Each graph is exported in a new process from a config.json alone. A model without weights is built, traced,
converted by TICO and read into the IR. Seconds do not include the start of Python and its imports (`start`);
peak MB do. A linear fit of the peaks follows each form. It also prints the CPU time of an additional layer in
the lower and the upper half of the table. Their ratio is 1 for linear growth.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder
    from o2o.cli import interrupt

    interrupt.exit_on_interrupt("export.py")

import argparse
import json
import resource
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from o2o.cli.arguments import Parser
from o2o.cli.command import run

FORMS = {
    "prefill": "prefill of T tokens",
    "chunk": "prefill of T tokens at any position, onto caches of S",
    "concat": "decode on S - 1 rows and the new one",
    "static": "decode, the new row written into caches of S",
}


def measure(config: dict[str, Any], form: str, tokens: int, capacity: int) -> dict[str, float]:
    """Export one graph in this process.

    Args:
        config: The content of config.json.
        form: A key of `FORMS`.
        tokens: T, the length of a prefill.
        capacity: S, the number of cache rows.

    Returns:
        The number of nodes, wall and CPU seconds, and the peak memory of this process in MB.
    """
    started = time.perf_counter()
    from transformers import AutoConfig

    from export.circle import convert_to_circle
    from export.model import LanguageModel
    from export.modules import ConcatenatedCacheModule, ExportModule, PrefillModule, StaticCacheModule

    imported, cpu = time.perf_counter(), time.process_time()
    model = LanguageModel(AutoConfig.for_model(**config))
    graph: ExportModule
    if form == "prefill":
        graph = PrefillModule(model, tokens)
    elif form == "chunk":
        graph = StaticCacheModule(model, f"prefill_{tokens}", tokens, capacity)
    elif form == "concat":
        graph = ConcatenatedCacheModule(model, capacity - 1)
    else:
        graph = StaticCacheModule(model, "decode", 1, capacity)
    nodes = len(convert_to_circle(graph).graphs[0])
    done, cpu = time.perf_counter(), time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_mb = peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
    start, seconds = imported - started, done - imported
    return {"nodes": nodes, "start": start, "seconds": seconds, "cpu": cpu, "peak": peak_mb}


def in_a_process(*arguments: object) -> dict[str, float]:
    """Run `measure` in a new process.

    Args:
        arguments: The arguments of `measure`.

    Returns:
        Its result.
    """
    command = [sys.executable, __file__, "--measure", json.dumps(arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def _line(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """The coefficients a, b of the least-squares fit y = a + b x."""
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    b = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True))
    b /= sum((x - x_mean) ** 2 for x in xs)
    return y_mean - b * x_mean, b


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 8, 22, 44], metavar="N")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument(
        "--shape", default="tinyllama-1.1b", help="of make_checkpoint.py (default: %(default)s)"
    )
    parser.add_argument("--tokens", type=int, default=64, metavar="T")
    parser.add_argument("--capacity", type=int, default=256, metavar="S")
    parser.add_argument("--rounds", type=int, default=1, help="the fastest is printed (default: %(default)s)")
    return run("export.py", lambda: _run(parser.parse_args(argv)))


def _run(args: argparse.Namespace) -> None:
    if args.measure:
        print(json.dumps(measure(*args.measure)))
        return

    from bench.make_checkpoint import SHAPES, SIZES, TIED, configuration

    size = dict(zip(SIZES, SHAPES[args.shape], strict=True))
    print(f"{args.shape}, T = {args.tokens}, S = {args.capacity}")
    print(f"{'layers':>6} {'nodes':>6} {'start':>8} {'seconds':>8} {'CPU s':>8} {'peak MB':>8}")
    for form in args.forms:
        print(f"{form}: {FORMS[form]}")
        rows = []
        for layers in sorted(set(args.layers)):
            config = configuration(size | {"layers": layers}, args.shape in TIED, "float32")
            runs = [in_a_process(config, form, args.tokens, args.capacity) for _ in range(args.rounds)]
            row = {"layers": layers, **min(runs, key=lambda run: run["seconds"])}
            print(
                "{layers:6} {nodes:6} {start:8.1f} {seconds:8.1f} {cpu:8.1f} {peak:8.0f}".format(**row),
                flush=True,
            )
            rows.append(row)
        _print_growth(*([row[name] for row in rows] for name in ("layers", "cpu", "peak")))


def _print_growth(layers: Sequence[float], cpu: Sequence[float], peaks: Sequence[float]) -> None:
    """Print the linear fit of the peaks, and how CPU time grows."""
    if len(layers) < 2:
        return
    a, b = _line(layers, peaks)
    growth = f"peak = {a:.0f} + {b:.2f} MB a layer"
    if len(layers) > 2:
        middle = len(layers) // 2
        lower = (cpu[middle] - cpu[0]) / (layers[middle] - layers[0])
        upper = (cpu[-1] - cpu[middle]) / (layers[-1] - layers[middle])
        growth += f"; {lower * 1e3:.0f} and {upper * 1e3:.0f} ms a layer, ratio {upper / lower:.2f}"
    print(f"       {growth}")


if __name__ == "__main__":
    sys.exit(main())
