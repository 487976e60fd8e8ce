"""Measure a package: `python -m runtime_py.bench PACKAGE`.

    load      seconds until the model is ready: cold, with an empty cache (a big model's weights are packed),
              and warm, both in processes of their own
    prefill   a prompt of so many tokens, begun anew: seconds to the first new token, and tokens a second
    decode    so many tokens behind a context: tokens a second, the median step; and the share of the memory's
              speed at which a step reads all weights and the keys and values of the text so far
    memory    the most that this process had resident, mapped files among it; also as a share of the model's
              file

Prompts are random ids. Every figure is the median of --rounds, which go through all lengths in turn.
"""

from __future__ import annotations

import sys

from o2o.cli import interrupt

if __name__ == "__main__":
    interrupt.exit_on_interrupt(None if "--load" in sys.argv else "bench")  # before the slow imports

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from o2o.cli.arguments import Parser, positive_int
from o2o.cli.command import run
from o2o.cli.text import counted
from o2o.errors import UsageError
from runtime_py.engines.selection import add_engine

if TYPE_CHECKING:
    from runtime_py.engines import Engine
    from runtime_py.package import Package

LENGTHS = (16, 128, 512, 1024, 2048, 4096, 8192)
"""Of prompts and contexts, as far as they fit."""
TOKENS = 32
"""That are decoded behind each context."""


@dataclass(frozen=True)
class Prefill:
    """first: seconds from a prompt of `tokens` to the first new token."""

    tokens: int
    first: float

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return self.tokens / self.first


@dataclass(frozen=True)
class Decode:
    """step: seconds of a decode step behind `context` tokens. share: of the memory's speed."""

    context: int
    step: float
    share: float

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return 1 / self.step


@dataclass
class Report:
    """What was measured. Seconds, bytes, bytes a second. cold: None where it was not asked for."""

    package: str
    engine: str
    model_bytes: int
    threads: int
    capacity: int
    bandwidth: float
    weight_bytes: int
    row_bytes: int
    cold: float | None
    warm: float
    memory: float = 0.0
    prefill: list[Prefill] = field(default_factory=list)
    decode: list[Decode] = field(default_factory=list)

    def table(self) -> Iterator[str]:
        """Lines for a reader."""
        yield (
            f"{self.package}: {self.model_bytes / 1e6:,.1f} MB, {self.capacity} tokens of context, "
            f"{counted(self.threads, 'thread')}"
        )
        yield f"engine    {self.engine}"
        cold = "" if self.cold is None else f"{self.cold:.2f} s cold, "
        yield f"load      {cold}{self.warm:.2f} s warm"
        for prompt in self.prefill:
            yield (
                f"prefill   {prompt.tokens:>6,} tokens: first token after {prompt.first * 1e3:,.1f} ms, "
                f"{prompt.speed:,.1f} tokens/s"
            )
        for step in self.decode:
            yield (
                f"decode    behind {step.context:>6,}: {step.speed:,.1f} tokens/s, {step.share:.0%} of the "
                "memory's speed"
            )
        share = self.memory / self.model_bytes
        yield f"memory    {self.memory / 1e6:,.0f} MB at most, {share:.2f} of the file"
        speed = self.bandwidth / 1e9
        yield (
            f"reading   {self.weight_bytes / 1e6:,.1f} MB a step and {self.row_bytes / 1e3:,.1f} kB a token "
            f"of context; this machine can, {speed:.1f} GB/s"
        )


def measure(args: argparse.Namespace) -> Report:
    from runtime_py.evaluation.roofline import bandwidth, step_of
    from runtime_py.evaluation.timing import peak_memory
    from runtime_py.package import Package

    package = Package.load(args.package, args.tokenizer)
    # This fills the cache, if it is not.
    with closing(package.engine(args.threads, say=_say, engine=args.engine)) as engine:
        assert package.running
        name, threads = package.running.choice.engine, package.running.threads
        decoded = min(args.tokens, engine.capacity // 2)
        contexts = _lengths(args.contexts, engine.capacity - decoded, "context")
        prompts = _lengths(args.prompts, engine.capacity, "prompt")
        rounds, speeds = [], []
        for _ in range(args.rounds):
            speeds.append(bandwidth(threads))  # next to what is compared with it: machines are shared
            rounds.append(_round(engine, prompts, contexts, decoded))
        capacity = engine.capacity
    memory = peak_memory() * 1e6
    reads, speed = step_of(package.model, package.contract), max(speeds)
    report = Report(
        package=str(args.package),
        engine=package.told,
        model_bytes=package.size,
        threads=threads,
        capacity=capacity,
        bandwidth=speed,
        weight_bytes=reads.weights,
        row_bytes=reads.row,
        cold=None if args.warm else _load(package, name, threads, empty=True),
        warm=statistics.median(_load(package, name, threads) for _ in range(args.rounds)),
        memory=memory,
    )
    for tokens in prompts:
        report.prefill.append(Prefill(tokens, statistics.median(firsts[tokens] for firsts, _ in rounds)))
    for context in contexts:
        step = statistics.median(steps[context] for _, steps in rounds)
        read = reads.behind(context + decoded // 2)
        report.decode.append(Decode(context, step, read / step / speed))
    return report


def _lengths(asked: Sequence[int] | None, most: int, what: str) -> list[int]:
    """Raises UsageError for one that does not fit."""
    if not asked:
        return [length for length in LENGTHS if length <= most] or [max(1, most)]
    if max(asked) > most:
        raise UsageError(f"a {what} of {max(asked)} tokens does not fit: at most {most} do")
    return sorted(set(asked))


def _round(
    engine: Engine, prompts: Sequence[int], contexts: Sequence[int], tokens: int
) -> tuple[dict[int, float], dict[int, float]]:
    """Seconds to the first token by prompt, seconds of a step by context."""
    import numpy as np

    ids = np.random.default_rng(0).integers(0, engine.vocab_size, engine.capacity).tolist()
    firsts, steps = {}, {}
    for length in prompts:
        with _timed() as seconds:
            engine.prefill(ids[:length]).argmax()
        firsts[length] = seconds[0]
    for length in contexts:
        engine.prefill(ids[:length])
        each = []
        for position in range(length, length + tokens):
            with _timed() as seconds:
                engine.decode(ids[position], position).argmax()
            each.append(seconds[0])
        steps[length] = statistics.median(each)
    return firsts, steps


@contextmanager
def _timed() -> Iterator[list[float]]:
    """The list gets the seconds that the block takes."""
    seconds: list[float] = []
    started = time.perf_counter()
    yield seconds
    seconds.append(time.perf_counter() - started)


def _load(package: Package, engine: str, threads: int, empty: bool = False) -> float:
    """Seconds that a new process takes to load it; with an `empty` cache, on the disk of the usual one."""
    from runtime_py.engines.disk_cache import user_cache

    command = [sys.executable, "-m", __spec__.name, "--load", str(package.model)]
    command += ["--tokenizer", str(package.directory), "--threads", str(threads), "--engine", engine]
    usual = user_cache()
    folder = usual.folder if usual and usual.folder.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="bench-", dir=folder) as place:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        if empty:
            environment["O2O_CACHE"] = place
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def _loaded(args: argparse.Namespace) -> None:
    """What `_load` runs."""
    from runtime_py.package import Package

    started = time.perf_counter()
    package = Package.load(args.package, args.tokenizer)
    with closing(package.engine(args.threads, engine=args.engine)):
        print(time.perf_counter() - started)


def plot(report: Report, file: Path) -> None:
    """Draw tokens a second over the context's length, with matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    figure.suptitle(f"{Path(report.package).name}, {counted(report.threads, 'thread')}")
    decode, prefill = figure.subplots(1, 2)
    contexts, prompts = [one.context for one in report.decode], [one.tokens for one in report.prefill]
    decode.plot(contexts, [one.speed for one in report.decode], marker="o")
    limits = [one.speed / one.share for one in report.decode]
    decode.plot(contexts, limits, linestyle="--", color="grey", label="memory's speed")
    decode.set(title="decode", xlabel="tokens of context", ylabel="tokens/s")
    decode.legend()
    prefill.plot(prompts, [one.speed for one in report.prefill], marker="o")
    prefill.set(title="prefill", xlabel="tokens of the prompt")
    for axes, lengths in ((decode, contexts), (prefill, prompts)):
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.savefig(file)


def told(report: Report) -> dict[str, Any]:
    """As JSON, with tokens a second."""
    speeds = {
        "prefill": [{**asdict(one), "speed": one.speed} for one in report.prefill],
        "decode": [{**asdict(one), "speed": one.speed} for one in report.decode],
    }
    return {"version": 1, **asdict(report), **speeds}


def parser() -> Parser:
    parser = Parser(
        prog="python -m runtime_py.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("package", metavar="PACKAGE", help="folder, or model file")
    add("--tokenizer", metavar="DIR", help="folder of the tokenizer, where it is not with the model")
    add(
        "--prompts", metavar="N", type=positive_int, nargs="+", help=f"default: {LENGTHS}, as far as they fit"
    )
    add("--contexts", metavar="N", type=positive_int, nargs="+", help="the same")
    add("--tokens", metavar="N", type=positive_int, default=TOKENS, help="decoded each time (%(default)s)")
    add("--rounds", metavar="N", type=positive_int, default=3, help="(%(default)s)")
    add_engine(parser)
    add("--warm", action="store_true", help="do not load with an empty cache, which packs a big model again")
    add("--json", metavar="FILE", type=Path, help="write the figures there")
    add("--plot", metavar="FILE", type=Path, help="draw tokens/s over the context's length (.png, .svg)")
    add("--load", action="store_true", help=argparse.SUPPRESS)
    add("--debug", action="store_true", help="show where an error comes from")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes as for `runtime_py.run`."""
    argv = sys.argv[1:] if argv is None else argv

    def body() -> None:
        args = parser().parse_args(argv)
        if args.load:
            _loaded(args)
            return
        for file in (args.json, args.plot):
            if file and not file.absolute().parent.is_dir():
                raise UsageError(f"{file}: no such folder")
        if args.plot and importlib.util.find_spec("matplotlib") is None:
            raise UsageError("--plot needs matplotlib: pip install matplotlib")
        report = measure(args)
        print(*report.table(), sep="\n")
        if args.json:
            args.json.write_text(json.dumps(told(report), indent=2) + "\n")
        if args.plot:
            plot(report, args.plot)

    return run("bench", body, debug="--debug" in argv)


def _say(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
