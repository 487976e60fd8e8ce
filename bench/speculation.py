"""Speculative decoding relative to decode steps, on texts of this repository.

    python bench/speculation.py PACKAGE... [--engines litert onnx] [--rounds 3] [--texts json prose ...]

For each package and engine, it first prints what a run of T tokens costs relative to a decode step. Then, for
each text of `bench/texts`, the speed with drafts relative to that without, and the share of drafted tokens
that were accepted. The model is made to write the text: after the prompt, each next token is the most likely
one, whatever its weights are. So a random checkpoint of a large shape shows what a trained one would gain.
With and without drafts take turns every few tokens, on one engine, so that other work on the machine slows
both.

`same text` says whether the model's own greedy continuation has the same tokens with and without drafts. They
are used here even where an engine rounds several tokens otherwise than one, such as ONNX Runtime with int4 in
blocks of 128. Then the text may differ.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder
    from o2o.cli import interrupt

    interrupt.exit_on_interrupt("speculation.py")

import argparse
import itertools
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np

from runtime_py.engines.engine import Engine
from runtime_py.engines.registry import installed
from runtime_py.generation.generate import generate
from runtime_py.generation.sampling import GREEDY
from runtime_py.generation.session import DraftStats, Session
from runtime_py.generation.session_pool import SessionPool
from runtime_py.package import Package
from runtime_py.text.detokenizer import Detokenizer

TEXTS = Path(__file__).resolve().parent / "texts"
SEPARATOR = "=====\n"
"""Between a prompt and its continuation."""
REPEATS = 9
"""Runs whose median is the cost of a run."""
TURN = 32
"""Tokens that are written with drafts, then without, in turns."""
MAX_CONTINUATION = 128
"""Tokens of the model's own continuation of a prompt."""


@dataclass(frozen=True)
class Text:
    """A prompt and what the model is made to write after it, as token ids."""

    name: str
    prompt: list[int]
    continuation: list[int]


def read_texts(package: Package, names: Sequence[str], capacity: int) -> list[Text]:
    """Read and tokenize texts.

    Args:
        package: Its tokenizer is used.
        names: Names of files in `bench/texts`; none for all.
        capacity: S. Longer prompts lose their beginning, longer continuations their end.

    Returns:
        The texts.
    """
    texts = []
    for file in sorted(TEXTS.glob("*.txt")):
        if names and file.stem not in names:
            continue
        parts = [package.tokenizer.encode(part) for part in file.read_text().split(SEPARATOR)]
        prompt, continuation = parts[0], [token for token in parts[1] if token not in parts[0][:1]]
        continuation = continuation[: capacity // 2]
        texts.append(Text(file.stem, prompt[-(capacity - len(continuation)) :], continuation))
    return texts


def seconds_per_token(
    package: Package, pools: Sequence[SessionPool], text: Text
) -> list[tuple[float, DraftStats]]:
    """Let the model write a text in several ways. They take turns, so that other work slows all alike.

    Args:
        package: The package.
        pools: The KV caches of its engine, for each way.
        text: The text.

    Returns:
        For each way: seconds per token after the first, and what became of the drafts.
    """
    vocab_size = pools[0].engine.vocab_size
    forced = np.zeros(vocab_size, np.float32)

    def write(ids: Sequence[int], logits: np.ndarray) -> np.ndarray:
        chosen = forced.copy()
        chosen[text.continuation[len(ids) - len(text.prompt)]] = 1
        return chosen

    with ExitStack() as stack:
        sessions = [stack.enter_context(Session(pool)) for pool in pools]
        streams = [
            generate(
                session,
                text.prompt,
                Detokenizer(package.tokenizer),
                max_new_tokens=len(text.continuation),
                logits_processors=[write],
            )
            for session in sessions
        ]
        for stream in streams:
            next(stream)
        seconds = [0.0] * len(streams)
        for _ in range(0, len(text.continuation), TURN):
            for index, stream in enumerate(streams):
                begin = time.perf_counter()
                for _ in itertools.islice(stream, TURN):
                    pass
                seconds[index] += time.perf_counter() - begin
        count = len(text.continuation) - 1
        return [(taken / count, session.drafts) for taken, session in zip(seconds, sessions, strict=True)]


def continuation(package: Package, pool: SessionPool, text: Text) -> list[int]:
    """Return the model's own greedy continuation of a prompt.

    Args:
        package: The package.
        pool: The KV caches of its engine.
        text: The prompt.

    Returns:
        Token ids.
    """
    detokenizer = Detokenizer(package.tokenizer)
    count = min(len(text.continuation), MAX_CONTINUATION)
    with closing(Session(pool)) as session:
        tokens = generate(session, text.prompt, detokenizer, max_new_tokens=count, sampling=GREEDY)
        return [token.id for token in tokens]


def print_costs(engine: Engine, position: int) -> None:
    """Print the time of runs relative to a decode step, in turns.

    Args:
        engine: The engine.
        position: The position of the first token.
    """
    ids = np.random.default_rng(0).integers(0, engine.vocab_size, position + 16).tolist()
    times: dict[int, list[float]] = {length: [] for length in (1, *engine.verify_lengths(position))}
    with closing(engine.open_session()) as session:
        session.prefill(ids[:position])
        for _ in range(REPEATS + 1):
            for length, seconds in times.items():
                begin = time.perf_counter()
                if length == 1:
                    session.decode(ids[position], position)
                else:
                    session.verify(ids[position : position + length], position)
                seconds.append(time.perf_counter() - begin)
    medians = {length: statistics.median(seconds[1:]) for length, seconds in times.items()}
    costs = ", ".join(f"{length} tokens {seconds / medians[1]:.2f}" for length, seconds in medians.items())
    print(f"  behind {position}: a step {medians[1] * 1e3:.1f} ms; relative to it: {costs}")


def measure(package: Package, engine: Engine, names: Sequence[str], rounds: int) -> None:
    """Print the figures of one engine.

    Args:
        package: The package.
        engine: Its engine.
        names: See `read_texts`.
        rounds: How often each text is written with and without drafts.
    """
    for position in (100, 400, 900):
        if engine.verify_lengths(position) if position < engine.capacity else ():
            print_costs(engine, position)
    with_drafts, without = SessionPool(engine, rounded_drafts=True), SessionPool(engine)
    without.verification.compared(1, exact=False)
    for text in read_texts(package, names, engine.capacity):
        ratios, speeds, drafts = [], [], DraftStats()
        for _ in range(rounds):
            (plain, _), (fast, drafts) = seconds_per_token(package, [without, with_drafts], text)
            ratios.append(plain / fast)
            speeds.append(1 / fast)
        same = continuation(package, without, text) == continuation(package, with_drafts, text)
        share = f"{drafts.accepted} of {drafts.drafted} accepted in {drafts.runs} runs"
        print(
            f"  {text.name:15} {statistics.median(ratios):5.2f} times ({min(ratios):.2f}-{max(ratios):.2f}), "
            f"{statistics.median(speeds):6.1f} tokens/s, {len(text.continuation)} tokens; {share}; "
            f"same text: {'yes' if same else 'no'}",
            flush=True,
        )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packages", nargs="+", metavar="PACKAGE")
    parser.add_argument("--engines", nargs="+", choices=installed(), default=["litert", "onnx"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", nargs="+", metavar="NAME", default=[], help="default: all")
    args = parser.parse_args()
    for path in args.packages:
        for name in args.engines:
            with (
                Package.load(path) as package,
                closing(package.engine(engine=name, rounded_drafts=True)) as engine,
            ):
                assert package.loaded
                print(f"{path}: {package.loaded.description}", flush=True)
                measure(package, engine, args.texts, args.rounds)


if __name__ == "__main__":
    main()
