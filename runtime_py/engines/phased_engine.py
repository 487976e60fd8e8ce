"""An engine made of two: each phase of a text runs on the one that is faster at it.

The other engine is loaded when its first phase comes. Each session has KV caches on both engines. A run needs
the rows of all tokens before it. Those that its engine lacks are copied from the other one, once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np

from o2o.errors import ModelError
from runtime_py.engines import phases
from runtime_py.engines.cached_rows import CachedRows
from runtime_py.engines.engine import Engine, EngineSession
from runtime_py.engines.phases import Phase
from runtime_py.engines.prefill_plan import Chunk
from runtime_py.engines.step_lock import CLOSED_SESSION, StepLock
from runtime_py.engines.token_ids import check_prompt, check_token

MAIN, OTHER = 0, 1


class PhaseSession(EngineSession, Protocol):
    """A session that another engine can copy rows from."""

    def view_rows(self, stop: int) -> CachedRows:
        """View rows of the KV caches. Call it in a turn of `Engine.steps`.

        Args:
            stop: See `EngineSession.read_rows`.

        Returns:
            The rows, until the next run.
        """
        ...


@dataclass(frozen=True)
class PhaseChunk(Chunk):
    """A run of one of the two engines."""

    place: int = MAIN
    """`MAIN` or `OTHER`."""


class PhasedEngine:
    """A `runtime_py.engines.engine.Engine` made of two, which run the same model."""

    def __init__(
        self,
        main: Engine,
        load_other: Callable[[], Engine],
        other_phases: frozenset[Phase],
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Divide the phases of texts.

        Args:
            main: The engine of all other phases.
            load_other: Loads the other engine.
            other_phases: The phases of the other engine.
            log: Called with one line where the other engine cannot be loaded. The first one then runs all.
        """
        self.contract = main.contract
        self.capacity, self.vocab_size = main.capacity, main.vocab_size
        self.gives_all_logits = main.gives_all_logits
        self.steps = StepLock(self)
        self._engines = [main]
        self._load_other, self._log = load_other, log
        self._other_phases = other_phases
        self._loading = threading.Lock()

    @property
    def weight_dtype(self) -> str:
        """See `Engine`."""
        return self._engines[MAIN].weight_dtype

    def place(self, phase: Phase) -> int:
        """Return which engine runs a phase. The other one is loaded at its first phase.

        Args:
            phase: The phase.

        Returns:
            `MAIN` or `OTHER`.
        """
        if phase in self._other_phases and len(self._engines) == 1:
            with self._loading:
                if len(self._engines) == 1:
                    self._add_other()
        return OTHER if phase in self._other_phases else MAIN

    def _add_other(self) -> None:
        try:
            other = self._load_other()
        except (ModelError, OSError) as error:
            self._other_phases = frozenset()
            self._log(f"a second engine is not used: {error}")
            return
        if (other.capacity, other.vocab_size) == (self.capacity, self.vocab_size):
            self._engines.append(other)
        else:
            self._other_phases = frozenset()
            self._log("a second engine is not used: its KV caches have another capacity")
            other.close()

    def plan(self, length: int, num_cached: int = 0) -> list[Chunk]:
        """See `EngineSession.plan`."""
        place = self.place(Phase.of_prompt(length - num_cached))
        chunks = self._engines[place].plan(length, num_cached)
        return [PhaseChunk(chunk.length, chunk.start, chunk.stop, place) for chunk in chunks]

    def verify_lengths(self, position: int) -> Sequence[int]:
        """See `Engine`. Only the first engine verifies drafts, before another one decodes their positions."""
        if Phase.of_decode(position) in self._other_phases:
            return []
        end = phases.BOUNDARY if Phase.FAR_DECODE in self._other_phases else self.capacity
        return [T for T in self._engines[MAIN].verify_lengths(position) if position + T <= end]

    def verify_setup(self, length: int) -> float:
        """See `Engine`."""
        return self._engines[MAIN].verify_setup(length)

    def open_session(self) -> PhasedSession:
        """See `Engine`."""
        return PhasedSession(self)

    def open_part(self, place: int) -> PhaseSession:
        """Open a session of one of the two engines.

        Args:
            place: `MAIN` or `OTHER`.

        Returns:
            The session.
        """
        return cast(PhaseSession, self._engines[place].open_session())

    def close(self) -> None:
        """See `Engine`."""
        self.steps.close(self._free)

    def _free(self) -> None:
        with self._loading:
            self._other_phases = frozenset()
            for engine in self._engines:
                engine.close()


class PhasedSession:
    """A `runtime_py.engines.engine.EngineSession` on two engines."""

    def __init__(self, engine: PhasedEngine) -> None:
        """Open a session. KV caches are allocated on an engine when it first runs.

        Args:
            engine: The engine.
        """
        self.capacity, self.vocab_size, self.plan = engine.capacity, engine.vocab_size, engine.plan
        self._engine, self._steps = engine, engine.steps
        self._parts: dict[int, PhaseSession] = {}
        self._valid: dict[int, int] = {}  # of each part: the number of leading rows that hold the text
        with self._steps.turn():
            self._part(MAIN)

    def prefill(self, tokens: Sequence[int], num_cached: int = 0) -> np.ndarray:
        """See `EngineSession`."""
        tokens = check_prompt(tokens, self, num_cached)
        *chunks, last = self.plan(len(tokens), self.reusable(num_cached))
        for chunk in chunks:
            with self._steps.turn():
                self.run(tokens, chunk)
        with self._steps.turn():
            start = chunks[-1].stop if chunks else self.reusable(num_cached)
            part = self._select(_place(last), start, len(tokens))
            return part.prefill(tokens, start)

    def run(self, tokens: Sequence[int], chunk: Chunk) -> None:
        """See `EngineSession`."""
        self._select(_place(chunk), chunk.start, chunk.stop).run(tokens, chunk)

    def decode(self, token: int, position: int) -> np.ndarray:
        """See `EngineSession`."""
        check_token(token, position, self)
        with self._steps.turn():
            place = self._engine.place(Phase.of_decode(position))
            return self._select(place, position, position + 1).decode(token, position)

    def logits(self, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        """See `EngineSession`. The first engine reads the text."""
        tokens = check_prompt(tokens, self, name="the text")
        with self._steps.turn():
            part = self._select(MAIN, 0, 0)
        yield from part.logits(tokens)
        with self._steps.turn():
            self._valid[MAIN] = len(tokens)

    def verify(self, tokens: Sequence[int], position: int) -> np.ndarray:
        """See `EngineSession`."""
        with self._steps.turn():
            place = self._engine.place(Phase.of_decode(position))
            return self._select(place, position, position + len(tokens)).verify(tokens, position)

    def reusable(self, count: int) -> int:
        """See `EngineSession`."""
        return count if self._holder(count) is not None else 0

    def copy_rows(self, source: PhasedSession, start: int, stop: int) -> None:
        """See `EngineSession`."""
        place = source._holder(stop)
        assert place is not None
        part = self._part(place)
        part.copy_rows(source._parts[place], min(start, self._valid[place]), stop)
        self._written(place, start, stop)

    def read_rows(self, stop: int) -> CachedRows | None:
        """See `EngineSession`."""
        place = self._holder(stop)
        assert place is not None
        return self._parts[place].read_rows(stop)

    def write_rows(self, rows: CachedRows, start: int, stop: int) -> None:
        """See `EngineSession`."""
        self._parts[MAIN].write_rows(rows, min(start, self._valid[MAIN]), stop)
        self._written(MAIN, start, stop)

    def close(self) -> None:
        """See `EngineSession`."""
        self._steps = CLOSED_SESSION
        for part in self._parts.values():
            part.close()

    def _part(self, place: int) -> PhaseSession:
        """The session of one engine, opened if it is not open."""
        if place not in self._parts:
            self._valid[place] = 0  # before another thread can see the part
            self._parts[place] = self._engine.open_part(place)
        return self._parts[place]

    def _select(self, place: int, start: int, stop: int) -> PhaseSession:
        """The session of one engine with the rows before `start`, for a run that writes rows up to `stop`."""
        part = self._part(place)
        if start and not self._holds(place, start):
            holder = self._holder(start)
            if holder is not None:
                rows = self._parts[holder].view_rows(start)
                part.write_rows(rows, min(start, self._valid[place]), start)
        self._written(place, start, stop)
        return part

    def _written(self, place: int, start: int, stop: int) -> None:
        """Rows `start` to `stop` - 1 are valid in one part only, and no part has later rows of the text."""
        for other in [*self._valid]:
            self._valid[other] = min(self._valid[other], start)
        self._valid[place] = stop

    def _holds(self, place: int, count: int) -> bool:
        return self._valid[place] >= count and self._parts[place].reusable(count) == count

    def _holder(self, count: int) -> int | None:
        """The engine whose KV caches hold what a run at a position sees; None for none."""
        return next((place for place in [*self._parts] if self._holds(place, count)), None)


def _place(chunk: Chunk) -> int:
    return chunk.place if isinstance(chunk, PhaseChunk) else MAIN
