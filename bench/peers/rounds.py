"""Rounds: every variant does everything once, in turn with the others, beginning with another each time."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.peers.processes import PeerFailed
from bench.peers.variants import Variant
from bench.peers.worker import Child

CHECKED = 64
"""Ids of the prompt by which the variants are compared before they are measured."""
AGREEMENT = {4: 0.2, 8: 0.9, 16: 0.9, 32: 0.9}
"""By bits: the least correlation of a prompt's logits with those of the variant of the most bits. Random
weights suffer more from few bits than trained ones: of 1.1 billion four of them leave everyone 0.4."""
STEPS = 0.9
"""Between the logits behind a prompt, and those of its last id decoded behind the others."""
ROOM = 0.8
"""Of the memory that is free: what the variants may take together to be loaded at the same time."""


Say = Callable[[str], None]


@dataclass(frozen=True)
class Contender:
    """A variant ready to be started. size: bytes of its model on disk."""

    variant: Variant
    python: str
    model: Path
    checkpoint: Path
    size: int
    log: Path


@dataclass
class Found:
    """What was measured of one shape. failed: reasons by variant or peer. together: whether all were loaded
    at the same time."""

    contenders: list[Contender]
    correlations: dict[str, float] = field(default_factory=dict)
    rounds: list[dict[str, dict[str, float]]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    together: bool = True

    @contextmanager
    def excused(self, contender: Contender, say: Say) -> Iterator[None]:
        """Who fails within the block is let go, with the reason; the rest goes on."""
        try:
            yield
        except PeerFailed as error:
            self.failed[contender.variant.name] = str(error)
            self.contenders.remove(contender)
            say(f"{contender.variant.name} is left out: {error}")


@dataclass(frozen=True)
class Plan:
    """What is measured, and how."""

    rounds: int
    threads: int
    lengths: Sequence[int]
    tokens: int
    seconds: float
    capacity: int
    cache: Path

    def speeds(self) -> list[tuple[str, int]]:
        """What is done, with how many tokens before it or in it."""
        return [(action, length) for action in ("prefill", "decode") for length in self.lengths]


def measure(contenders: Sequence[Contender], vocab_size: int, plan: Plan, say: Say) -> Found:
    """Check that the contenders compute the same, then measure them."""
    # Ids 0 to 2 mean the beginning and the end of texts: nothing to ask of a model in the midst of one.
    ids = np.random.default_rng(0).integers(3, vocab_size, plan.capacity).tolist()
    found = Found(list(contenders))
    needed, free = _check(found, ids[:CHECKED], plan, say), _free_memory()
    found.together = needed < ROOM * free
    if not found.together:
        say(f"all need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: they are loaded one at a time")
    for number in range(plan.rounds):
        if found.contenders:
            turn = number % len(found.contenders)
            order = found.contenders[turn:] + found.contenders[:turn]
            say(f"round {number + 1} of {plan.rounds}")
            found.rounds.append(_round(found, order, ids, plan, say))
    return found


def _check(found: Found, ids: Sequence[int], plan: Plan, say: Say) -> int:
    """Let those go that fail or compute something else; how many bytes the others had resident, added up.

    It is each one's first start, too: what it keeps for the next is there afterwards, and its file in memory.
    """
    logits, peaks = {}, {}
    for contender in list(found.contenders):
        name = contender.variant.name
        with found.excused(contender, say), ExitStack() as stack:
            child, _ = _start(contender, plan, stack)
            answer = child.ask("logits", ids=ids)
            if not (agreement := correlation(answer["logits"], answer["steps"])) >= STEPS:
                raise PeerFailed(f"decode and prefill do not agree: correlation {agreement:.3f}")
            logits[name], peaks[name] = answer["logits"], child.ask("memory")["peak"]
    most = max(found.contenders, key=lambda one: (one.variant.bits, not one.variant.ours), default=None)
    for contender in list(found.contenders):
        assert most is not None
        with found.excused(contender, say):
            name, reference = contender.variant.name, most.variant.name
            agreement = found.correlations[name] = correlation(logits[name], logits[reference])
            if not agreement >= AGREEMENT[contender.variant.bits]:
                del peaks[name]
                raise PeerFailed(f"computes something else than {reference}: correlation {agreement:.3f}")
            say(f"{name}: correlation {agreement:.4f} with {reference}")
    return sum(peaks.values())


def _round(
    found: Found, order: Sequence[Contender], ids: Sequence[int], plan: Plan, say: Say
) -> dict[str, dict[str, float]]:
    measured: dict[str, dict[str, float]] = {one.variant.name: {} for one in order}
    for batch in [order] if found.together else [[one] for one in order]:
        children: dict[str, Child] = {}

        def each(batch: Sequence[Contender] = batch) -> Iterator[tuple[Contender, str]]:
            return ((one, one.variant.name) for one in batch if one in found.contenders)

        with ExitStack() as stack:
            for one, name in each():
                with found.excused(one, say):
                    children[name], measured[name]["load"] = _start(one, plan, stack)
            for action, length in plan.speeds():
                for one, name in each():
                    with found.excused(one, say):
                        speed = _speed(children[name], action, ids[:length], plan)
                        measured[name][f"{action} {length}"] = speed
            for one, name in each():
                with found.excused(one, say):
                    measured[name]["memory"] = children[name].ask("memory")["peak"]
    return measured


def _start(contender: Contender, plan: Plan, stack: ExitStack) -> tuple[Child, float]:
    """A child that has loaded its model, until `stack` ends, and the seconds that took."""
    variant = contender.variant
    runner = f"{variant.peer.runners}.{variant.peer.key}"
    child = Child(runner, contender.python, contender.log, plan.cache)
    stack.callback(child.close)
    answer = child.ask(
        "load",
        model=str(contender.model),
        checkpoint=str(contender.checkpoint),
        precision=variant.precision,
        engine=variant.engine,
        threads=plan.threads,
        capacity=plan.capacity,
    )
    return child, answer["load"]


def _speed(child: Child, action: str, ids: Sequence[int], plan: Plan) -> float:
    """Tokens a second, by the median of what was timed."""
    if action == "prefill":
        return len(ids) / statistics.median(child.ask(action, ids=ids, seconds=plan.seconds)["seconds"])
    times = child.ask(action, ids=ids, seconds=plan.seconds, tokens=plan.tokens)["seconds"]
    return 1 / statistics.median(times)


def correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Of two vectors of logits, as far as both go: some pad the vocabulary. NaN where one is constant."""
    size = min(len(a), len(b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(a[:size], b[:size])[0, 1])


def _free_memory() -> int:
    """Bytes that processes can have without anything being swapped."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
