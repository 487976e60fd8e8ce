"""Measure the first token behind a stored prompt, relative to a prompt that is computed.

    python bench/prompt_cache.py PACKAGE [--tokens 1000] [--more 16] [--rounds 5] [--engine litert]

A prompt is `--tokens` random ids and `--more` further ones. Rounds of `computed` (no part of it is stored)
and `stored` (its first `--tokens` are in a disk cache of this process) take turns in the same KV caches. So
the rows are read from the file each time. `ratio` is that of the medians.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder
    from o2o.cli import interrupt

    interrupt.exit_on_interrupt("prompt_cache.py")

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from o2o.cli.arguments import Parser, positive_int
from o2o.cli.command import run
from o2o.errors import UsageError
from o2o.streams.disk_cache import DiskCache
from o2o.streams.temporary import temporary_folder
from runtime_py.engine_flags import add_engine_flags, options_from
from runtime_py.package import Package


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    parser = Parser(prog="bench/prompt_cache.py", description="Time of the first token of a stored prompt.")
    parser.add_argument("package", metavar="PACKAGE")
    parser.add_argument("--tokens", metavar="N", type=positive_int, default=1000)
    parser.add_argument("--more", metavar="N", type=positive_int, default=16)
    parser.add_argument("--rounds", metavar="N", type=positive_int, default=5)
    add_engine_flags(parser)
    arguments = parser.parse_args(argv)
    return run("prompt_cache.py", lambda: _run(arguments))


def _run(args: argparse.Namespace) -> None:
    options = options_from(args, lambda line: print(line, file=sys.stderr))
    with (
        temporary_folder() as folder,
        Package.load(args.package, "ids", options, max_sessions=1) as package,
    ):
        session = package.session()
        assert session.pool.prompts is not None
        assert package.loaded is not None
        session.pool.prompts.disk_cache = DiskCache(folder)  # the packed weights are in that of the user
        if (length := args.tokens + args.more) > session.capacity:
            raise UsageError(f"{length} tokens of {session.capacity}: give fewer --tokens")
        rng = np.random.default_rng(0)

        def ids(count: int) -> list[int]:
            drawn: list[int] = rng.integers(3, session.vocab_size, count).tolist()
            return drawn

        system = ids(args.tokens)
        file = package.remember(system)
        times: dict[str, list[float]] = {"computed": [], "stored": []}
        for _ in range(args.rounds + 1):
            for name, prompt in (("computed", ids(args.tokens)), ("stored", system)):
                text = prompt + ids(args.more)
                begin = time.perf_counter()
                logits = session.read(text)
                times[name].append(time.perf_counter() - begin)
                used = session.runs[0].start
                assert (used > 0) == (name == "stored"), (name, used)
        session.pool.prompts = replace(session.pool.prompts, disk_cache=None)
        session.read(ids(2))
        difference = np.abs(session.read(text) - logits).max() / logits.std()
        seconds = {name: statistics.median(rounds[1:]) for name, rounds in times.items()}
        print(f"{package.loaded.description}; {args.tokens} tokens, {file.stat().st_size / 1e6:.1f} MB")
        for name, median in seconds.items():
            best = min(times[name])
            print(f"{name:9} {median * 1000:8.1f} ms to the first token (minimum {best * 1000:.1f})")
        print(f"ratio     {seconds['computed'] / seconds['stored']:8.1f}")
        print(f"largest difference of the logits: {difference:.1e} standard deviations")


if __name__ == "__main__":
    sys.exit(main())
