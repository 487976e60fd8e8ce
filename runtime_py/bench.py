"""Measure the speed and memory of a package: `o2o bench PACKAGE`.

    load      seconds until the model is loaded: cold, with an empty disk cache (the weights of a large model
              are packed), and warm, each in a child process
    prefill   a prompt without a cached prefix: seconds to the first new token, and tokens per second
    decode    tokens after a context: tokens per second of the median step, and the share of the memory
              bandwidth that reading all weights and the KV caches of the context takes
    memory    peak resident memory of this process, including mapped files; also relative to the model's file

Prompts are random ids. Each figure is the median of --rounds, which take turns over all lengths.
"""

from __future__ import annotations

import sys

from o2o.cli import interrupt
from o2o.streams.temporary import temporary_folder

if __name__ == "__main__":
    interrupt.exit_on_interrupt(None if "--load" in sys.argv else "bench")  # before the slow imports

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from o2o.cli.arguments import Parser, positive_int
from o2o.cli.command import report, run
from o2o.cli.extras import install_command
from o2o.cli.progress import progress
from o2o.errors import UsageError
from runtime_py.engine_flags import add_engine_flags, options_from

if TYPE_CHECKING:
    from runtime_py.benchmark.report import Report
    from runtime_py.engines.engine import EngineSession
    from runtime_py.package import Package

LENGTHS = (16, 128, 512, 1024, 2048, 4096, 8192)
"""Default lengths of prompts and contexts; those that do not fit are skipped."""
JSON_FILE, PLOT_FILE = Path("bench.json"), Path("bench.png")
TOKENS = 32
"""Number of tokens that are decoded after each context."""


def measure(args: argparse.Namespace) -> Report:
    """Measure a package.

    Args:
        args: The parsed command line.

    Returns:
        The figures.

    Raises:
        ModelError: The package cannot be run.
        UsageError: A prompt or context does not fit.
    """
    from runtime_py.benchmark.machine import processor_cache, processor_name
    from runtime_py.benchmark.report import Decode, Prefill, Report
    from runtime_py.benchmark.roofline import bandwidth, step_bytes
    from runtime_py.benchmark.timing import peak_memory
    from runtime_py.package import Package

    package = Package.load(args.package, args.tokenizer, options_from(args, _log))
    # Loading fills the disk cache if it is empty.
    with closing(package.engine()) as engine, closing(engine.open_session()) as session:
        assert package.loaded
        threads = package.loaded.threads
        decoded = min(args.tokens, engine.capacity // 2)
        contexts = _lengths(args.contexts, engine.capacity - decoded, "context")
        prompts = _lengths(args.prompts, engine.capacity, "prompt")
        rounds, bandwidths = [], []
        with progress("measure", args.rounds, "round") as advance:
            for _ in range(args.rounds):
                bandwidths.append(bandwidth(threads))  # in each round: other processes share the machine
                rounds.append(measure_round(session, prompts, contexts, decoded))
                advance(1)
    memory = peak_memory() * 1e6
    with progress("load", args.rounds + (not args.warm), "time") as advance:
        cold = None if args.warm else _load_time(package, advance, empty_cache=True)
        warm = [_load_time(package, advance) for _ in range(args.rounds)]
    reads, speed = step_bytes(package.model, engine.contract), max(bandwidths)
    report = Report(
        package=str(args.package),
        engine=package.loaded.description,
        model_bytes=package.size,
        threads=threads,
        capacity=engine.capacity,
        bandwidth=speed,
        weight_bytes=reads.weights,
        row_bytes=reads.row,
        cold=cold,
        warm=statistics.median(warm),
        memory=memory,
        processor=processor_name(),
        processor_cache=processor_cache(),
    )
    for tokens in prompts:
        report.prefill.append(Prefill(tokens, statistics.median(firsts[tokens] for firsts, _ in rounds)))
    for context in contexts:
        step = statistics.median(steps[context] for _, steps in rounds)
        read = reads.total(context + decoded // 2)
        report.decode.append(Decode(context, step, read / step / speed))
    return report


def _lengths(requested: Sequence[int] | None, limit: int, name: str) -> list[int]:
    """Raises UsageError for a length above `limit`."""
    if not requested:
        return [length for length in LENGTHS if length <= limit] or [max(1, limit)]
    if max(requested) > limit:
        raise UsageError(f"a {name} of {max(requested)} tokens does not fit: the limit is {limit}")
    return sorted(set(requested))


def measure_round(
    session: EngineSession, prompts: Sequence[int], contexts: Sequence[int], tokens: int
) -> tuple[dict[int, float], dict[int, float]]:
    """Measure each prompt and each context once.

    Args:
        session: A session of the engine.
        prompts: Lengths of prompts.
        contexts: Lengths of contexts.
        tokens: How many tokens to decode after each context.

    Returns:
        Seconds to the first token by prompt length, and seconds of the median step by context length.
    """
    import numpy as np

    ids = np.random.default_rng(0).integers(0, session.vocab_size, session.capacity).tolist()
    firsts, steps = {}, {}
    for length in prompts:
        with _timed() as seconds:
            session.prefill(ids[:length]).argmax()
        firsts[length] = seconds[0]
    for length in contexts:
        session.prefill(ids[:length])
        each = []
        for position in range(length, length + tokens):
            with _timed() as seconds:
                session.decode(ids[position], position).argmax()
            each.append(seconds[0])
        steps[length] = statistics.median(each)
    return firsts, steps


@contextmanager
def _timed() -> Iterator[list[float]]:
    """Append the seconds that the block takes to the list."""
    seconds: list[float] = []
    started = time.perf_counter()
    yield seconds
    seconds.append(time.perf_counter() - started)


def _load_time(package: Package, advance: Callable[[int], object], empty_cache: bool = False) -> float:
    """Seconds that a new process takes to load the package on the same engine. Then calls `advance(1)`.

    An empty disk cache is created on the same disk as the user's cache.
    """
    from o2o.streams.disk_cache import user_cache
    from runtime_py.child_process import run_module

    assert package.loaded
    command = ["--load", package.model]
    command += ["--tokenizer", package.directory] if isinstance(package.directory, Path) else []
    command += ["--threads", package.loaded.threads, "--engine", package.loaded.choice.engine]
    usual = user_cache()
    parent = usual.folder if usual and usual.folder.is_dir() else None
    with temporary_folder(parent, "bench-") as folder:
        environment = {"O2O_CACHE": str(folder)} if empty_cache else None
        seconds = float(run_module(__spec__.name, *command, environment=environment))
    advance(1)
    return seconds


def _load(args: argparse.Namespace) -> None:
    """Print the seconds that loading takes; `_load_time` runs this in a child process."""
    from runtime_py.package import Package

    started = time.perf_counter()
    package = Package.load(args.package, args.tokenizer, options_from(args, _log))
    with closing(package.engine()):
        print(time.perf_counter() - started)


def parser() -> Parser:
    """Define the command line.

    Returns:
        Its parser.
    """
    parser = Parser(
        prog="python -m runtime_py.bench",
        description=__doc__,
        examples=["o2o bench my-package", "o2o bench my-package --contexts 128,512 --json --plot"],
    )
    add = parser.add_argument
    add("package", metavar="PACKAGE", help="folder, or model file")
    add("--tokenizer", metavar="DIR", help="folder of the tokenizer, if it is not with the model")
    add(
        "--prompts", metavar="N", type=positive_int, nargs="+", help=f"default: {LENGTHS}, as far as they fit"
    )
    add("--contexts", metavar="N", type=positive_int, nargs="+", help="the same")
    add("--tokens", metavar="N", type=positive_int, default=TOKENS, help="decoded each time (%(default)s)")
    add("--rounds", metavar="N", type=positive_int, default=3, help="(%(default)s)")
    add_engine_flags(parser)
    add("--warm", action="store_true", help="do not measure loading with an empty disk cache")
    add(
        "--json",
        metavar="FILE",
        nargs="?",
        type=_file,
        const=JSON_FILE,
        help=f"write the figures to FILE (without a name: {JSON_FILE})",
    )
    add(
        "--plot",
        metavar="FILE",
        nargs="?",
        type=_file,
        const=PLOT_FILE,
        help=f"draw tokens/s over the context length, .png or .svg (without a name: {PLOT_FILE})",
    )
    add("--load", action="store_true", help=argparse.SUPPRESS)
    add("--debug", action="store_true", help="show the runtime's log, and tracebacks")
    return parser


def _file(name: str) -> Path:
    """A file to write. The package's folder after a bare `--json` is taken for its value."""
    if Path(name).is_dir():
        raise argparse.ArgumentTypeError(
            f"{name} is a folder: give PACKAGE before this flag, or FILE after it"
        )
    return Path(name)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The command line without the program; None for `sys.argv`.

    Returns:
        The exit code, as for `runtime_py.run`.
    """
    argv = sys.argv[1:] if argv is None else argv
    return run("bench", lambda: _run(parser().parse_args(argv)), debug="--debug" in argv)


def _run(args: argparse.Namespace) -> None:
    if args.load:
        _load(args)
        return
    for file in (args.json, args.plot):
        if file and not file.absolute().parent.is_dir():
            raise UsageError(f"{file}: no such folder")
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        raise UsageError(f"--plot needs matplotlib: {install_command('plot')}")
    figures = measure(args)
    print(*figures.lines(), sep="\n")
    if args.json:
        args.json.write_text(json.dumps(figures.to_json(), indent=2) + "\n")
    if args.plot:
        figures.plot(args.plot)
    if written := [str(file) for file in (args.json, args.plot) if file]:
        _log(f"wrote {' and '.join(written)}")


def _log(line: str) -> None:
    report("bench", line)


if __name__ == "__main__":
    sys.exit(main())
