"""Scoring of a text by prefills with all logits, relative to one decode step a token.

    python bench/scoring.py PACKAGE... --text held_out.txt [--tokens 4000] [--engines litert onnx]

For each package and engine: tokens a second of both, their ratio, and how far the nats are apart. The two
take turns, so that other work on the machine slows both. Exit code 1 if nats differ by more than 1e-4.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder
    from o2o.cli import interrupt

    interrupt.exit_on_interrupt("scoring.py")

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import pairwise

import numpy as np

from runtime_py.engines.engine import EngineSession
from runtime_py.evaluation.log_likelihood import documents, negative_log_likelihoods, take_tokens
from runtime_py.generation.log_probabilities import log_softmax
from runtime_py.package import Package

TOLERANCE = 1e-4  # nats


def by_decode_steps(session: EngineSession, ids: Sequence[int]) -> np.ndarray:
    """Compute the negative log-likelihoods of a document, one token at a time.

    Args:
        session: An engine session.
        ids: The document's ids.

    Returns:
        -log p of ids[1:] in nats.
    """
    ids = ids[: session.capacity + 1]
    pairs = enumerate(pairwise(ids))
    return np.array([-log_softmax(session.decode(token, at))[target] for at, (token, target) in pairs])


def measure(package: Package, engine: str, texts: Sequence[Sequence[int]]) -> tuple[float, float, float]:
    """Measure both ways on the same documents, in turns.

    Args:
        package: The package.
        engine: The engine's name.
        texts: The ids of each document.

    Returns:
        Tokens a second by prefills and by decode steps (medians over the documents), and the difference of
        the nats.
    """
    functions: dict[Callable[[EngineSession, Sequence[int]], np.ndarray], list[float]]
    functions = {negative_log_likelihoods: [], by_decode_steps: []}
    nats = np.zeros(2)
    with (
        closing(package.engine(engine=engine, all_logits=True)) as scorer,
        closing(package.engine(engine=engine)) as decoder,
    ):
        sessions = [scorer.open_session(), decoder.open_session()]
        for ids in texts:
            for index, (score, speeds) in enumerate(functions.items()):
                started = time.perf_counter()
                nlls = score(sessions[index], ids)
                speeds.append(len(nlls) / (time.perf_counter() - started))
                nats[index] += nlls.sum()
    tokens = sum(min(len(ids) - 1, scorer.capacity) for ids in texts)
    fast, slow = (statistics.median(speeds) for speeds in functions.values())
    return fast, slow, float(nats[0] - nats[1]) / tokens


def main() -> int:
    """Run the benchmark.

    Returns:
        0; 1 if nats differ by more than `TOLERANCE`.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packages", metavar="PACKAGE", nargs="+")
    parser.add_argument("--text", metavar="FILE", type=Path, required=True)
    parser.add_argument("--tokens", metavar="N", type=int, default=4000)
    parser.add_argument("--engines", nargs="+", default=["litert", "onnx"])
    args = parser.parse_args()
    code = 0
    print(f"{'package':30} {'engine':8} {'prefills':>9} {'steps':>8} {'ratio':>7}  difference in nats")
    for path in args.packages:
        package = Package.load(path)
        encoded = map(package.tokenizer.encode, documents(args.text.read_text()))
        texts = [*take_tokens(encoded, args.tokens)]
        for engine in args.engines:
            if engine == "onnx" and package.model.suffix == ".tflite":
                continue
            fast, slow, difference = measure(package, engine, texts)
            print(f"{path:30} {engine:8} {fast:9.0f} {slow:8.0f} {fast / slow:6.1f}x  {difference:+.1e}")
            code |= abs(difference) > TOLERANCE
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
