"""Which engine is the fastest for which model: prefill and decode of each, measured in turn.

    python bench/engines.py PACKAGE... [--engines litert onnx] [--rounds 9] [--threads 2]
    python bench/engines.py --make FOLDER --shapes 15m 135m --recipes none dynamic_int8 dynamic_int4_block32

--make builds packages of random checkpoints (bench/make_checkpoint.py) there first, where they are not yet,
as Circle, with a prefill of all tokens that are measured. Every round lets each engine read a prompt and
decode some tokens behind it. Printed are the median tokens a second, and by how much each engine is faster
than the first: the median of the rounds' ratios, with the quartiles. Where other work shares the machine,
--fastest takes the fastest step of a round, not the median. `runtime_py.engines.selection.fastest` is chosen
by it.
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
"""Of the prompt in a round."""
PAUSE = 0.02
"""Seconds between two engines: threads of the one before still wait for work, and take a core each."""


def build(folder: Path, shape: str, recipe: str, capacity: int, prompt: int) -> Path:
    """The package of that shape and recipe below `folder`; made where it is not there."""
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
    """Tokens a second: of reading the first `prompt` of `ids`, and of the `typical` step behind them."""
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


def compare(package: Package, args: argparse.Namespace) -> None:
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
        ][1:]  # the first is there to warm up
    first = next(iter(engines))
    for name in engines:
        told = [
            f"{what} {statistics.median(one[name][kind] for one in rounds):>9,.1f} tokens/s "
            + _ratio([one[name][kind] / one[first][kind] for one in rounds])
            for kind, what in enumerate((f"prefill of {prompt}", "decode"))
        ]
        print(f"  {name:8} {'   '.join(told)}", flush=True)


def _ratio(ratios: Sequence[float]) -> str:
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return f"{middle:.2f}x ({low:.2f} to {high:.2f})"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for those of the process.

    Returns:
        The exit code.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("packages", nargs="*", metavar="PACKAGE")
    add("--make", type=Path, metavar="FOLDER")
    add("--shapes", nargs="+", default=["15m", "135m"], metavar="SHAPE")
    add("--recipes", nargs="+", default=["none", "dynamic_int8", "dynamic_int4_block32"], metavar="RECIPE")
    add("--capacity", type=int, default=256, help="of what is made (%(default)s)")
    add("--engines", nargs="+", choices=ENGINES, default=["litert", "onnx"])
    add("--prompt", type=int, default=128, metavar="N", help="tokens (%(default)s)")
    add("--tokens", type=int, default=32, metavar="N", help="decoded behind the prompt (%(default)s)")
    add("--rounds", type=int, default=9, help="(%(default)s)")
    add("--threads", type=int, help="default: what each engine takes")
    add("--fastest", action="store_true", help="of the steps in a round, not the median")
    return run("engines.py", lambda: _run(parser.parse_args(argv)))


def _run(args: argparse.Namespace) -> None:
    packages = [Path(folder) for folder in args.packages]
    if args.make:
        args.make.mkdir(parents=True, exist_ok=True)
        wanted = [(shape, recipe) for shape in args.shapes for recipe in args.recipes]
        packages += [build(args.make, *one, args.capacity, args.prompt) for one in wanted]
    for folder in packages:
        package = Package.load(folder)
        print(f"{folder.name}: {package.size / 1e6:,.1f} MB")
        compare(package, args)


if __name__ == "__main__":
    sys.exit(main())
