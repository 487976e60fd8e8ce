"""Compare engines, numbers of threads and `auto` on packages: prefill and decode, measured in turn.

    python bench/engines.py PACKAGE... [--engines auto litert onnx] [--threads 2 1] [--prompt 128 512]
    python bench/engines.py --make FOLDER --shapes 15m 135m --recipes none dynamic_int8 dynamic_int4_block32

--make first builds Circle packages of random checkpoints (bench/make_checkpoint.py) in FOLDER, unless they
exist. In every round each engine reads each prompt and decodes some tokens after it. Prints the median
tokens/s, and how many times the fastest one's that is: the median of the rounds. `auto` runs as it is
(`runtime_py.engines.loading`); the other engines run with each number of threads. The last line has, of
`auto`, the quartiles too.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder
    from o2o.cli import interrupt

    interrupt.exit_on_interrupt("engines.py")

import argparse
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing

import numpy as np

from o2o.cli.arguments import Parser
from o2o.cli.command import run
from o2o.cli.text import counted
from o2o.errors import O2oError
from runtime_py.engines.engine import EngineSession
from runtime_py.engines.options import AUTO
from runtime_py.engines.registry import ENGINES
from runtime_py.engines.speed_trial import thread_counts
from runtime_py.package import Package

ROOT = Path(__file__).resolve().parents[1]
PAUSE = 0.02
"""Seconds between two engines: the threads of the last one busy-wait for a while, on a core each."""


def _build(folder: Path, shape: str, recipe: str, capacity: int, prompt: int) -> Path:
    """The package of a shape and recipe in `folder`; built unless it exists."""
    plain = folder / f"{shape}-none-{capacity}-{prompt}"
    if not (plain / "model.circle").exists():
        checkpoint = folder / f"{shape}-checkpoint"
        if not (checkpoint / "config.json").exists():
            _python(ROOT / "bench/make_checkpoint.py", checkpoint, "--shape", shape)
        options = ["--max-length", capacity, "--prefill-lengths", prompt]
        _python("-m", "export.pipeline", "--model", checkpoint, "--package", plain, *options)
    package = folder / plain.name.replace("none", recipe)
    if not (package / "model.circle").exists():
        package.mkdir(exist_ok=True)
        options = ["quantize.weights", "--recipe", recipe, "-o", package / "model.circle"]
        _python("-m", "o2o", *options, plain / "model.circle")
    return package


def _python(*command: object) -> None:
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def speeds(session: EngineSession, ids: Sequence[int], prompt: int, seconds: float) -> tuple[float, float]:
    """Measure one engine in a round.

    Args:
        session: An engine session.
        ids: The prompt and the tokens to decode.
        prompt: The length of the prompt.
        seconds: How long prompts are read, and steps are decoded, at least once after a first time.

    Returns:
        Tokens/s of prefill and of decode: the median.
    """
    time.sleep(PAUSE)
    reads, steps = list[float](), list[float]()
    session.prefill(ids[:prompt])
    while sum(reads) < seconds:
        started = time.perf_counter()
        session.prefill(ids[:prompt])
        reads.append(time.perf_counter() - started)
    while sum(steps) < seconds:
        session.prefill(ids[:prompt])
        session.decode(ids[prompt], prompt)  # may copy rows from the caches that the prompt is in
        for position in range(prompt + 1, len(ids)):
            started = time.perf_counter()
            session.decode(ids[position], position)
            steps.append(time.perf_counter() - started)
    return prompt / statistics.median(reads), 1 / statistics.median(steps)


def _compare(package: Package, args: argparse.Namespace) -> None:
    """Measure the forms on a package, and print a table."""
    threads = args.threads or thread_counts()
    forms = [(name, None if name == AUTO else count) for name in args.engines for count in threads]
    with ExitStack() as opened:
        sessions: dict[str, EngineSession] = {}
        capacity = vocab_size = sys.maxsize
        for name, count in dict.fromkeys(forms):
            form = name if count is None else f"{name}, {counted(count, 'thread')}"
            try:
                engine = opened.enter_context(closing(package.engine(threads=count, engine=name)))
            except O2oError as error:
                print(f"  {form}: {error}")
                continue
            assert package.loaded is not None
            if count is None:
                print(f"  {form}: {package.loaded.description}")
            sessions[form] = opened.enter_context(closing(engine.open_session()))
            capacity, vocab_size = min(engine.capacity, capacity), min(engine.vocab_size, vocab_size)
        if not sessions:
            return
        tokens = min(args.tokens, capacity // 2)
        prompts = sorted({min(prompt, capacity - tokens) for prompt in args.prompt})
        ids = np.random.default_rng(0).integers(0, vocab_size, capacity).tolist()
        rounds = []
        for number in range(args.rounds):
            turn = number % len(sessions)
            order = [*sessions.items()][turn:] + [*sessions.items()][:turn]
            cells: dict[tuple[str, str], float] = {}
            for prompt in prompts:
                for form, session in order:
                    pair = speeds(session, ids[: prompt + tokens], prompt, args.seconds)
                    for kind, speed in zip(("prefill", "decode"), pair, strict=True):
                        cells[form, f"{kind} {prompt}"] = speed
            rounds.append(cells)
    for line in report([*sessions], rounds):
        print(f"  {line}", flush=True)


def report(forms: Sequence[str], rounds: Sequence[Mapping[tuple[str, str], float]]) -> list[str]:
    """Tabulate the speeds of forms.

    Args:
        forms: Their names.
        rounds: Of each round, tokens/s by form and column.

    Returns:
        The lines: a header, a line for each form, and one for `auto` against the fastest other one.
    """
    columns = sorted(
        (column for form, column in rounds[0] if form == forms[0]), key=lambda name: name[0] == "d"
    )
    wide = max(map(len, forms))
    lines = [" " * wide + "".join(f"{column:>22}" for column in columns)]
    best: dict[str, str] = {}
    for column in columns:
        medians = {form: statistics.median(one[form, column] for one in rounds) for form in forms}
        others = [form for form in forms if form != AUTO] or [AUTO]
        best[column] = max(others, key=lambda form: medians[form])
    for form in forms:
        line = f"{form:{wide}}"
        for column in columns:
            speed = statistics.median(one[form, column] for one in rounds)
            line += f"{speed:>14,.1f} {_ratios(rounds, form, best[column], column)[1]:>6.2f}x"
        lines.append(line)
    if AUTO in forms:
        ratios = (_ratios(rounds, AUTO, best[column], column) for column in columns)
        cells = (f"{middle:.2f} ({low:.2f}..{high:.2f})" for low, middle, high in ratios)
        lines.append(f"{'auto':{wide}}" + "".join(f"{cell:>22}" for cell in cells))
    return lines


def _ratios(
    rounds: Sequence[Mapping[tuple[str, str], float]], form: str, other: str, column: str
) -> tuple[float, float, float]:
    """Quartiles of how many times as fast a form is as another one."""
    ratios = [one[form, column] / one[other, column] for one in rounds]
    low, middle, high = (
        statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    )
    return low, middle, high


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("packages", nargs="*", metavar="PACKAGE")
    add("--make", type=Path, metavar="FOLDER")
    add("--shapes", nargs="+", default=["15m", "135m"], metavar="SHAPE")
    add("--recipes", nargs="+", default=["none", "dynamic_int8", "dynamic_int4_block32"], metavar="RECIPE")
    add(
        "--capacity", type=int, default=1024, help="capacity of the packages of --make (default: %(default)s)"
    )
    add("--engines", nargs="+", choices=[AUTO, *ENGINES], default=[AUTO, "litert", "onnx"])
    add("--prompt", type=int, nargs="+", default=[128, 512], metavar="N", help="lengths of the prompts")
    add(
        "--tokens",
        type=int,
        default=32,
        metavar="N",
        help="decoded after the prompt (default: %(default)s)",
    )
    add("--rounds", type=int, default=3, help="(default: %(default)s)")
    add("--threads", type=int, nargs="+", metavar="N", help="default: what `auto` tries")
    add("--seconds", type=float, default=0.3, help="of each measurement (default: %(default)s)")
    return run("engines.py", lambda: _run(parser.parse_args(argv)))


def _run(args: argparse.Namespace) -> None:
    packages = [Path(folder) for folder in args.packages]
    if args.make:
        args.make.mkdir(parents=True, exist_ok=True)
        variants = [(shape, recipe) for shape in args.shapes for recipe in args.recipes]
        packages += [_build(args.make, *one, args.capacity, max(args.prompt)) for one in variants]
    for folder in packages:
        package = Package.load(folder)
        print(f"{folder.name}: {package.size / 1e6:,.1f} MB")
        _compare(package, args)


if __name__ == "__main__":
    sys.exit(main())
