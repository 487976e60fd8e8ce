"""Check and measure several texts of one package at once.

    python bench/sessions.py PACKAGE... [--engine litert onnx] [--texts 200] [--rounds 15]

`same`: each of 4 threads generates `--texts` short texts, two at a time in random order, and closes some in
the middle. Each text is compared with the text alone. Prompts often begin alike, and have lengths around
the capacities of the decode graphs. A text may part from the text alone at a tie: the logits of both tokens
differ by less than 1e-4. The exit code is 1 if another text differs.

`together`: tokens per second of 4 threads with a text each, relative to the same number of texts one after
the other (`alone`). Rounds of both take turns; `ratio` is the median. `first`: milliseconds to the first
token of a text alone, the median; `of 4`: of the slowest of 4 texts, the median; `maximum`: of all rounds.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder
    from o2o.cli import interrupt

    interrupt.exit_on_interrupt("sessions.py")

import argparse
import random
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from o2o.cli.arguments import Parser, positive_int
from o2o.cli.command import run
from runtime_py.engines.engine import EngineSession
from runtime_py.engines.options import EngineOptions
from runtime_py.generation.generation_config import GenerationConfig
from runtime_py.generation.sampling import GREEDY
from runtime_py.package import Package

THREADS = 4
NEW_TOKENS = 16
"""The largest number of new tokens of a text in `same`."""
TIE = 1e-4


@dataclass(frozen=True)
class Text:
    """A prompt, and how many tokens are generated before the stream is closed."""

    prompt: tuple[int, ...]
    new_tokens: int


def random_texts(rng: random.Random, capacities: Sequence[int], vocab_size: int) -> Iterator[Text]:
    """Yield short texts, and texts at the edges of the decode graphs.

    Args:
        rng: Random numbers.
        capacities: Capacities of the decode graphs.
        vocab_size: V.

    Yields:
        Texts without an end.
    """
    largest = max(capacities)
    common = [rng.randrange(3, vocab_size) for _ in range(largest)]
    while True:
        edge = rng.choice(capacities)
        length = rng.randrange(1, 24) if rng.random() < 0.8 else edge - rng.randrange(NEW_TOKENS)
        length = max(1, min(length, largest))
        shared = rng.choice((0, length // 2, length))
        prompt = [*common[:shared], *(rng.randrange(3, vocab_size) for _ in range(length - shared))]
        yield Text(tuple(prompt), rng.randrange(1, NEW_TOKENS + 1))


def parts_at_tie(session: EngineSession, text: Text, ids: Sequence[int]) -> bool | None:
    """Compare generated tokens with those of the text alone.

    Args:
        session: An engine session that nothing else uses.
        text: The text.
        ids: The generated ids.

    Returns:
        None if they are the same; else whether they part at tokens that are equally likely.
    """
    logits = session.prefill(text.prompt)
    for position, token in enumerate(ids, len(text.prompt)):
        if token != int(logits.argmax()):
            return bool(logits.max() - logits[token] < TIE)
        if position < session.capacity and position - len(text.prompt) < len(ids) - 1:
            logits = session.decode(token, position)
    return None


def generate_in_turns(package: Package, texts: Sequence[Text], rng: random.Random) -> list[list[int]]:
    """Generate texts, two at a time in random order.

    Args:
        package: The package.
        texts: The texts. A stream is closed, or dropped, after its number of tokens.
        rng: Random numbers.

    Returns:
        The new ids of each text.
    """
    results: list[list[int]] = [[] for _ in texts]
    waiting = list(enumerate(texts))
    running = {}
    while waiting or running:
        if waiting and len(running) < 2:
            number, text = waiting.pop()
            running[number] = package.stream(text.prompt, sampling=GREEDY)
        number = rng.choice(list(running))
        token = next(running[number], None)
        if token is not None:
            results[number].append(token.id)
        if token is None or len(results[number]) == texts[number].new_tokens:
            stream = running.pop(number)
            if rng.random() < 0.5:
                stream.close()
            del stream
    return results


def check(package: Package, texts_per_thread: int) -> tuple[int, int]:
    """Compare texts of 4 threads with the texts alone.

    Args:
        package: The package.
        texts_per_thread: The number of texts of each thread.

    Returns:
        The number of texts that differ, and of those that part at equally likely tokens.
    """
    with package.session() as session:
        vocab_size = session.vocab_size
    assert package.loaded
    capacities = list(package.loaded.engine.contract.decodes)
    rng = random.Random(0)
    source = random_texts(rng, capacities, vocab_size)
    texts = [[next(source) for _ in range(texts_per_thread)] for _ in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as threads:
        results = list(
            threads.map(lambda n: generate_in_turns(package, texts[n], random.Random(n)), range(THREADS))
        )
    alone = package.loaded.engine.open_session()
    parted = [
        parts_at_tie(alone, text, ids)
        for of_thread, generated in zip(texts, results, strict=True)
        for text, ids in zip(of_thread, generated, strict=True)
    ]
    alone.close()
    return parted.count(False), parted.count(True)


@dataclass(frozen=True)
class Round:
    """Tokens per second, and seconds to the first token of each text."""

    speed: float
    firsts: list[float]


def measure_round(package: Package, prompts: Sequence[Sequence[int]], tokens: int, together: bool) -> Round:
    """Generate 4 texts.

    Args:
        package: The package.
        prompts: Their prompts.
        tokens: The number of new tokens of each.
        together: In a thread each; else one after the other.

    Returns:
        The measurement.
    """
    firsts = [0.0] * len(prompts)
    counts = [0] * len(prompts)
    ready = threading.Barrier(len(prompts) + 1 if together else 1)

    def generate(number: int) -> None:
        stream = package.stream(prompts[number], max_new_tokens=tokens, sampling=GREEDY)
        ready.wait()
        started = time.perf_counter()
        for token in stream:
            if not counts[number]:
                firsts[number] = time.perf_counter() - started
            counts[number] += 1
            if token.finish:
                break

    if not together:
        began = time.perf_counter()
        for number in range(len(prompts)):
            generate(number)
        return Round(sum(counts) / (time.perf_counter() - began), firsts)
    threads = [threading.Thread(target=generate, args=[number]) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    ready.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return Round(sum(counts) / (time.perf_counter() - began), firsts)


def measure(package: Package, rounds: int, prompt: int, tokens: int) -> str:
    """Compare 4 texts together with the same texts one after the other.

    Args:
        package: The package.
        rounds: The number of rounds of each.
        prompt: The number of tokens of a prompt.
        tokens: The number of new tokens.

    Returns:
        The end of a line of the table.
    """
    with package.session() as session:
        vocab_size = session.vocab_size
    package.generation_config = GenerationConfig()  # without an end of sequence: all texts are equally long
    rng = np.random.default_rng(0)
    alone, together = [], []
    for number in range(rounds + 1):
        # In each round new prompts, of which no two begin alike: no rows can be copied.
        beginnings = rng.permutation(np.arange(3, vocab_size))[: 2 * THREADS].tolist()
        prompts = [[token, *rng.integers(3, vocab_size, prompt - 1).tolist()] for token in beginnings]
        one = measure_round(package, prompts[:THREADS], tokens, together=False)
        four = measure_round(package, prompts[THREADS:], tokens, together=True)
        if number:  # the first round is a warm-up
            alone.append(one)
            together.append(four)
    ratios = [four.speed / one.speed for one, four in zip(alone, together, strict=True)]
    first = statistics.median(first for one in alone for first in one.firsts) * 1e3
    slowest = [max(four.firsts) * 1e3 for four in together]
    return (
        f"{statistics.median(one.speed for one in alone):>9,.0f} "
        f"{statistics.median(four.speed for four in together):>9,.0f} {statistics.median(ratios):>6.2f} "
        f"{first:>9.1f} {statistics.median(slowest):>9.1f} {max(slowest):>9.1f}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments.

    Returns:
        The exit code: 1 if a text differs from the text alone.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("packages", nargs="+", metavar="PACKAGE")
    add("--engine", nargs="+", default=["litert", "onnx"], metavar="NAME", help="default: litert onnx")
    add("--texts", type=int, default=200, help="texts of each thread; 0 checks nothing (%(default)s)")
    add("--rounds", type=int, default=15, help="rounds of each; 0 measures nothing (%(default)s)")
    add("--prompt", type=positive_int, default=16, help="tokens of a prompt (%(default)s)")
    add("--tokens", type=positive_int, default=64, help="new tokens of a text (%(default)s)")
    return run("sessions.py", lambda: _run(parser.parse_args(argv)))


def _run(args: argparse.Namespace) -> int:
    heads = f"{'alone':>9} {'together':>9} {'ratio':>6} {'first':>9} {'of 4':>9} {'maximum':>9}"
    print(f"{'package':<32} {'engine':<8} {'same':<22} {heads if args.rounds else ''}")
    wrong = 0
    for folder in args.packages:
        for engine in args.engine:
            options = EngineOptions(engine=engine)
            with Package.load(folder, options=options, max_sessions=2 * THREADS) as package:
                line = f"{folder[-32:]:<32} {engine:<8}"
                verdict = "-"
                if args.texts:
                    different, ties = check(package, args.texts)
                    wrong += different
                    verdict = f"{THREADS * args.texts - different} of {THREADS * args.texts}, {ties} ties"
                figures = measure(package, args.rounds, args.prompt, args.tokens) if args.rounds else ""
                print(f"{line} {verdict:<22} {figures}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
