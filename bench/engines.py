"""Compare the speed of the engines on packages: prefill and decode, measured in turn.

    python bench/engines.py PACKAGE... [--engines litert onnx] [--rounds 9] [--threads 2]
    python bench/engines.py --make FOLDER --shapes 15m 135m --recipes none dynamic_int8 dynamic_int4_block32

--make first builds Circle packages of random checkpoints (bench/make_checkpoint.py) in FOLDER, unless they
exist. In every round each engine reads a prompt and decodes some tokens after it. Prints the median tokens/s,
and each engine's ratio to the first: the median of the rounds, with the quartiles. On a shared machine,
--fastest uses the fastest step of a round instead of the median. `auto` should take the fastest
(`runtime_py.engines.speed_trial`).
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
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing

import numpy as np

from o2o.cli.arguments import Parser
from o2o.cli.command import run
from o2o.errors import O2oError
from runtime_py.engines.engine import Engine, EngineSession
from runtime_py.engines.registry import ENGINES
from runtime_py.package import Package

ROOT = Path(__file__).resolve().parents[1]
READS = 3
"""Prefills in a round."""
PAUSE = 0.02
"""Seconds between two engines: the threads of the last one busy-wait for a while, on a core each."""


def _build(folder: Path, shape: str, recipe: str, capacity: int, prompt: int) -> Path:
    """The package of a shape and recipe in `folder`; built unless it exists."""
    plain = folder / f"{shape}-none-{capacity}-{prompt}"
    if not (plain / "model.circle").exists():
        checkpoint = folder / f"{shape}-checkpoint"
        if not (checkpoint / "config.json").exists():
            _run(ROOT / "bench/make_checkpoint.py", checkpoint, "--shape", shape)
        options = ["--max-length", capacity, "--prefill-lengths", prompt]
        _run("-m", "export.pipeline", "--model", checkpoint, "--package", plain, *options)
    package = folder / plain.name.replace("none", recipe)
    if not (package / "model.circle").exists():
        package.mkdir(exist_ok=True)
        options = ["quantize.weights", "--recipe", recipe, "-o", package / "model.circle"]
        _run("-m", "o2o", *options, plain / "model.circle")
    return package


def _run(*command: object) -> None:
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def speeds(
    session: EngineSession, ids: Sequence[int], prompt: int, typical: Callable[[Sequence[float]], float]
) -> tuple[float, float]:
    """Measure one engine in a round.

    Args:
        session: An engine session.
        ids: The prompt and the tokens to decode.
        prompt: The length of the prompt.
        typical: Chooses among the measured seconds, such as the median.

    Returns:
        Tokens/s of prefill and of decode.
    """
    time.sleep(PAUSE)
    session.decode(ids[0], 0)
    reads = []
    for _ in range(READS):
        started = time.perf_counter()
        session.prefill(ids[:prompt])
        reads.append(time.perf_counter() - started)
    steps = []
    for position in range(prompt, len(ids)):
        started = time.perf_counter()
        session.decode(ids[position], position)
        steps.append(time.perf_counter() - started)
    return prompt / typical(reads), 1 / typical(steps)


def _compare(package: Package, args: argparse.Namespace) -> None:
    """Measure the engines on a package, and print a line for each."""
    with ExitStack() as opened:
        engines: dict[str, Engine] = {}
        sessions: dict[str, EngineSession] = {}
        for name in args.engines:
            try:
                engine = package.engine(threads=args.threads, engine=name)
            except O2oError as error:
                print(f"  {name:8} {error}")
                continue
            engines[name] = opened.enter_context(closing(engine))
            sessions[name] = opened.enter_context(closing(engine.open_session()))
        if not engines:
            return
        capacity = min(engine.capacity for engine in engines.values())
        vocab_size = min(engine.vocab_size for engine in engines.values())
        tokens = min(args.tokens, capacity // 2)
        prompt = min(args.prompt, capacity - tokens)
        ids = np.random.default_rng(0).integers(0, vocab_size, prompt + tokens).tolist()
        typical = min if args.fastest else statistics.median
        rounds = [
            {name: speeds(session, ids, prompt, typical) for name, session in sessions.items()}
            for _ in range(args.rounds + 1)
        ][1:]  # the first round warms up
    first = next(iter(engines))
    for name in engines:
        columns = [
            f"{what} {statistics.median(one[name][kind] for one in rounds):>9,.1f} tokens/s "
            + _ratio([one[name][kind] / one[first][kind] for one in rounds])
            for kind, what in enumerate((f"prefill of {prompt}", "decode"))
        ]
        print(f"  {name:8} {'   '.join(columns)}", flush=True)


def _ratio(ratios: Sequence[float]) -> str:
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return f"{middle:.2f}x ({low:.2f} to {high:.2f})"


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
    add("--capacity", type=int, default=256, help="capacity of the packages of --make (default: %(default)s)")
    add("--engines", nargs="+", choices=ENGINES, default=["litert", "onnx"])
    add("--prompt", type=int, default=128, metavar="N", help="length of the prompt (default: %(default)s)")
    add(
        "--tokens",
        type=int,
        default=32,
        metavar="N",
        help="decoded after the prompt (default: %(default)s)",
    )
    add("--rounds", type=int, default=9, help="(default: %(default)s)")
    add("--threads", type=int, help="default: as each engine chooses")
    add("--fastest", action="store_true", help="use the fastest step of a round, not the median")
    return run("engines.py", lambda: _run(parser.parse_args(argv)))


def _run(args: argparse.Namespace) -> None:
    packages = [Path(folder) for folder in args.packages]
    if args.make:
        args.make.mkdir(parents=True, exist_ok=True)
        variants = [(shape, recipe) for shape in args.shapes for recipe in args.recipes]
        packages += [_build(args.make, *one, args.capacity, args.prompt) for one in variants]
    for folder in packages:
        package = Package.load(folder)
        print(f"{folder.name}: {package.size / 1e6:,.1f} MB")
        _compare(package, args)


if __name__ == "__main__":
    sys.exit(main())
