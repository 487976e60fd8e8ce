"""Speculative decoding: a draft of several tokens is verified in one run of the engine.

A decode step reads all weights for one token. A run of T tokens reads them once, too. So the engine feeds a
token and its draft together (`EngineSession.verify`), and returns the logits that follow each. The sampler
chooses from them one by one, as always. Where it chooses the drafted token, the next logits are there. At the
first other token the rest is dropped; its rows in the KV caches are overwritten.

The text is the same as without drafts. The logits that a token is chosen from depend only on the tokens
before it, and each is chosen once, by the same logits processors and the same random numbers. A token drawn
from p that is kept only if it is the drafted one is what rejection sampling does with a draft of one
possibility: the drafted token is accepted with its probability, and any other comes from the rest of p.

Drafts come from the text (`runtime_py.generation.prompt_lookup`). A run of T tokens takes longer than a step.
How much longer is measured while texts are generated (`StepCosts`). A draft is used only where the tokens
that are expected to agree are worth that time.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from runtime_py.engines.finite_logits import check_logits
from runtime_py.generation.prompt_lookup import PromptLookup

GAIN = 1.08
"""The speed relative to decode steps from which a draft is used."""
COST_PER_TOKEN = 0.08
"""What each further token of a run adds to the time of a step, before it is measured."""
SAMPLES = 7
"""Runs of each length whose median is the time of a run."""
FORGET = 512
"""Measured decode steps after which the times of an unused length are forgotten: it is tried again."""


@dataclass
class DraftStats:
    """Counts of one session.

    Attributes:
        runs: Runs that verified a draft.
        drafted: Tokens of these drafts.
        accepted: Drafted tokens that were chosen.
    """

    runs: int = 0
    drafted: int = 0
    accepted: int = 0


class StepCosts:
    """How long a run of T tokens takes relative to a decode step, on one engine. Any thread may use it."""

    def __init__(self) -> None:
        self._seconds: dict[int, deque[float]] = {}
        self._medians: dict[int, float] = {}
        self._first: set[int] = set()  # lengths whose first run, with one-time work, is over
        self._unused: dict[int, int] = {}
        self._changing = threading.Lock()

    def add(self, length: int, seconds: float) -> None:
        """Record the time of a run.

        Args:
            length: T; 1 for a decode step.
            seconds: Its time.
        """
        with self._changing:
            if length not in self._first:
                self._first.add(length)
                return
            samples = self._seconds.setdefault(length, deque(maxlen=SAMPLES))
            samples.append(seconds)
            self._medians[length] = statistics.median(samples)
            self._unused[length] = 0
            if length == 1:
                for other in [*self._unused]:
                    self._unused[other] += 1
                    if self._unused[other] > FORGET:
                        del self._unused[other], self._seconds[other], self._medians[other]

    def relative(self, length: int) -> float:
        """Return the time of a run relative to a decode step.

        Args:
            length: T.

        Returns:
            Its median time over that of a step; an optimistic guess before both are measured.
        """
        step, run = self._medians.get(1), self._medians.get(length)
        return run / step if step and run else 1 + COST_PER_TOKEN * (length - 1)


class Reader(Protocol):
    """A session in which a text is generated (`runtime_py.generation.session.Session`)."""

    drafts: DraftStats

    @property
    def costs(self) -> StepCosts:
        """The times of the runs of its engine."""
        ...

    @property
    def verify_lengths(self) -> Sequence[int]:
        """See `runtime_py.engines.engine.Engine`."""
        ...

    @property
    def capacity(self) -> int:
        """S."""
        ...

    def append(self, token: int) -> np.ndarray:
        """Feed the next token of the text; returns the logits [V] float32 that follow it."""
        ...

    def verify(self, token: int, draft: Sequence[int]) -> np.ndarray:
        """Feed the next token and a draft; returns the logits [1 + D, V] float32 that follow each."""
        ...

    def accept(self, token: int) -> None:
        """Append the first drafted token that is not part of the text yet, whose row is there."""
        ...


class SpeculativeDecoding:
    """Feeds the tokens of one text to its session, with drafts where they pay."""

    def __init__(self, session: Reader, prompt: Sequence[int], max_length: int | None) -> None:
        """Begin behind a prompt that the session has read.

        Args:
            session: The session.
            prompt: Token ids [P].
            max_length: The largest number of ids of the text, prompt included; None for no limit but S.
        """
        self._session = session
        self._length = len(prompt)
        self._limit = session.capacity if max_length is None else min(session.capacity, max_length - 1)
        self._lengths = session.verify_lengths
        self._lookup = PromptLookup(prompt) if self._lengths else None
        self._draft: list[int] = []
        self._logits = np.zeros((0, 0), np.float32)  # those that follow the tokens of the draft

    def append(self, token: int) -> np.ndarray:
        """Feed the next token of the text.

        Args:
            token: The token that was chosen.

        Returns:
            The logits [V] float32 that follow it.
        """
        session, lookup = self._session, self._lookup
        self._length += 1
        if lookup is None:
            return session.append(token)
        lookup.append(token)
        if self._draft and self._draft[0] == token:
            session.accept(token)
            session.drafts.accepted += 1
            logits, self._draft, self._logits = self._logits[0], self._draft[1:], self._logits[1:]
            return check_logits(logits, self._length - 1)
        self._draft = []
        if not lookup.match:
            return session.append(token)
        length = self._best_length(lookup)
        begin = time.perf_counter()
        if length == 1:
            logits = session.append(token)
            session.costs.add(1, time.perf_counter() - begin)
            return logits
        self._draft = lookup.draft(min(length - 1, self._limit - self._length))
        rows = session.verify(token, self._draft)
        session.costs.add(length, time.perf_counter() - begin)
        session.drafts.runs += 1
        session.drafts.drafted += len(self._draft)
        self._logits = rows[1:]
        return check_logits(rows[0], self._length - 1)

    def _best_length(self, lookup: PromptLookup) -> int:
        """The number of tokens of the next run; 1 for a decode step."""
        best, speed = 1, GAIN
        for length in self._lengths:
            count = min(length - 1, self._limit - self._length)
            if count > 0 and self._length - 1 + length <= self._session.capacity:
                gain = (1 + lookup.expected(count)) / self._session.costs.relative(length)
                if gain > speed:
                    best, speed = length, gain
        return best
