"""Measurement in rounds: each variant does every task once, in turn.

Each round starts with another variant.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.processes import PeerFailed
from bench.peers.variants import Variant
from bench.peers.worker import Worker

CHECKED = 64
"""Prompt length of the check that all variants compute the same."""
MIN_CORRELATION = {4: 0.2, 8: 0.9, 16: 0.9, 32: 0.9}
"""By bits: the lowest accepted correlation of a prompt's logits with the variant of the most bits.

Few bits harm random weights more than trained ones: with 4 bits at 1.1B parameters every peer has 0.4.
"""
MIN_DECODE_CORRELATION = 0.9
"""The lowest accepted correlation between logits of prefill and of prefill plus one decode step."""
MEMORY_SHARE = 0.8
"""The share of free memory that variants loaded at the same time may use together."""


Log = Callable[[str], None]


@dataclass(frozen=True)
class Contender:
    """A variant with its interpreter and its model.

    Attributes:
        variant: The variant.
        python: The interpreter of the peer's environment.
        model: The file or folder that the runner loads.
        checkpoint: The folder of the checkpoint.
        size: Bytes of the model on disk.
        log: The file for the runner's stderr.
    """

    variant: Variant
    python: str
    model: Path
    checkpoint: Path
    size: int
    log: Path


@dataclass
class Results:
    """The measurements of one shape.

    Attributes:
        contenders: The contenders that have not failed.
        correlations: Correlation of the logits with the variant of the most bits, by variant.
        rounds: Of each round, by variant and measure: tokens/s, seconds or bytes.
        failed: The reason of each failure, by variant or peer.
        together: Whether all variants were loaded at the same time.
    """

    contenders: list[Contender]
    correlations: dict[str, float] = field(default_factory=dict)
    rounds: list[dict[str, dict[str, float]]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    together: bool = True

    @contextmanager
    def leaves_out_failures(self, contender: Contender, log: Log) -> Iterator[None]:
        """Remove the contender if it fails within the block, and go on.

        Args:
            contender: The contender that works in the block.
            log: Prints a message.

        Yields:
            Nothing.
        """
        try:
            yield
        except PeerFailed as error:
            self.failed[contender.variant.name] = str(error)
            self.contenders.remove(contender)
            log(f"{contender.variant.name} is left out: {error}")


@dataclass(frozen=True)
class Plan:
    """The tasks of a round.

    Attributes:
        rounds: Number of rounds.
        threads: Threads of each runner.
        lengths: Prompt lengths.
        tokens: Tokens decoded after each prompt.
        seconds: Measuring time of each task.
        capacity: S, the number of cache rows.
        cache: The disk cache for this project's packed weights.
    """

    rounds: int
    threads: int
    lengths: Sequence[int]
    tokens: int
    seconds: float
    capacity: int
    cache: Path

    def speeds(self) -> list[tuple[str, int]]:
        """List the speed measurements.

        Returns:
            The action of each, and its prompt length.
        """
        return [(action, length) for action in ("prefill", "decode") for length in self.lengths]


def measure(contenders: Sequence[Contender], vocab_size: int, plan: Plan, log: Log) -> Results:
    """Check that the contenders compute the same, then measure them.

    Args:
        contenders: The contenders of one shape.
        vocab_size: V.
        plan: The tasks.
        log: Prints a message.

    Returns:
        The measurements.
    """
    # Ids 0 to 2 are special tokens, which do not occur inside a text.
    ids = np.random.default_rng(0).integers(3, vocab_size, plan.capacity).tolist()
    results = Results(list(contenders))
    required, free = _check(results, ids[:CHECKED], plan, log), _free_memory()
    results.together = required < MEMORY_SHARE * free
    if not results.together:
        log(f"all need {required / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: they are loaded one at a time")
    for number in range(plan.rounds):
        if results.contenders:
            turn = number % len(results.contenders)
            order = results.contenders[turn:] + results.contenders[:turn]
            log(f"round {number + 1} of {plan.rounds}")
            results.rounds.append(_round(results, order, ids, plan, log))
    return results


def _check(results: Results, ids: Sequence[int], plan: Plan, log: Log) -> int:
    """Remove contenders that fail or compute something else. Return the total peak memory of the others.

    It is also the first start of each: afterwards its artifacts are cached and its file is in memory.
    """
    answers, peaks = {}, {}
    for contender in list(results.contenders):
        name = contender.variant.name
        with results.leaves_out_failures(contender, log), ExitStack() as stack:
            worker, _ = _start(contender, plan, stack)
            answer = worker.ask("logits", ids=ids)
            by_steps = {"logits": answer.get("steps"), "tokens": answer["step_tokens"]}
            if not (agreement := _agreement(answer, by_steps)) >= MIN_DECODE_CORRELATION:
                raise PeerFailed(f"decode and prefill do not agree: correlation {agreement:.3f}")
            answers[name], peaks[name] = answer, worker.ask("memory")["peak"]
    with_logits = [one for one in results.contenders if "logits" in answers[one.variant.name]]
    most = max(with_logits, key=lambda one: (one.variant.bits, not one.variant.ours), default=None)
    for contender in list(results.contenders):
        with results.leaves_out_failures(contender, log):
            name, reference = contender.variant.name, (most or contender).variant.name
            if "logits" not in answers[name]:  # its ids can be compared with those of the same file only
                reference = _same_file(contender, results.contenders).variant.name
            agreement = results.correlations[name] = _agreement(answers[name], answers[reference])
            if not agreement >= MIN_CORRELATION[contender.variant.bits]:
                del peaks[name]
                raise PeerFailed(f"computes something else than {reference}: correlation {agreement:.3f}")
            log(f"{name}: correlation {agreement:.4f} with {reference}")
    return sum(peaks.values())


def _agreement(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """The correlation of logits; without them the share of ids that are the same."""
    if one.get("logits") and other.get("logits"):
        return correlation(one["logits"], other["logits"])
    return statistics.mean(a == b for a, b in zip(one["tokens"], other["tokens"], strict=True))


def _same_file(contender: Contender, others: Sequence[Contender]) -> Contender:
    """This project's variant that loads the same file, else `contender` itself."""
    return next((one for one in others if one.variant.ours and one.model == contender.model), contender)


def _round(
    results: Results, order: Sequence[Contender], ids: Sequence[int], plan: Plan, log: Log
) -> dict[str, dict[str, float]]:
    measured: dict[str, dict[str, float]] = {one.variant.name: {} for one in order}
    for batch in [order] if results.together else [[one] for one in order]:
        workers: dict[str, Worker] = {}

        def each(batch: Sequence[Contender] = batch) -> Iterator[tuple[Contender, str]]:
            return ((one, one.variant.name) for one in batch if one in results.contenders)

        with ExitStack() as stack:
            for one, name in each():
                with results.leaves_out_failures(one, log):
                    workers[name], measured[name]["load"] = _start(one, plan, stack)
            for action, length in plan.speeds():
                for one, name in each():
                    with results.leaves_out_failures(one, log):
                        speed = _speed(workers[name], action, ids[:length], plan)
                        measured[name][f"{action} {length}"] = speed
            for one, name in each():
                with results.leaves_out_failures(one, log):
                    measured[name]["memory"] = workers[name].ask("memory")["peak"]
    return measured


def _start(contender: Contender, plan: Plan, stack: ExitStack) -> tuple[Worker, float]:
    """Start a worker and load its model. Return it with the seconds for loading; `stack` ends it."""
    variant = contender.variant
    runner = f"{variant.peer.runners}.{variant.peer.key}"
    worker = Worker(runner, contender.python, contender.log, plan.cache)
    stack.callback(worker.close)
    answer = worker.ask(
        "load",
        model=str(contender.model),
        checkpoint=str(contender.checkpoint),
        precision=variant.precision,
        engine=variant.runtime,
        threads=plan.threads,
        capacity=plan.capacity,
    )
    return worker, answer["load"]


def _speed(worker: Worker, action: str, ids: Sequence[int], plan: Plan) -> float:
    """Tokens/s, by the median of the measured times."""
    if action == "prefill":
        return len(ids) / statistics.median(worker.ask(action, ids=ids, seconds=plan.seconds)["seconds"])
    times = worker.ask(action, ids=ids, seconds=plan.seconds, tokens=plan.tokens)["seconds"]
    return 1 / statistics.median(times)


def correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Compute the correlation of two vectors of logits.

    Args:
        a: Logits [V].
        b: Logits; the longer vector is cut, as some peers pad the vocabulary.

    Returns:
        Pearson's correlation; NaN if one of them is constant.
    """
    size = min(len(a), len(b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(a[:size], b[:size])[0, 1])


def _free_memory() -> int:
    """Bytes that are available without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
