"""The session pool: who gets which KV caches, and that each text is read right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from o2o.errors import UsageError
from runtime_py.engines.prefill_plan import Chunk, plan_chunks
from runtime_py.engines.step_lock import CLOSED, SESSION_CLOSED, EngineClosed, StepLock
from runtime_py.generation import session_pool
from runtime_py.generation.session import BUSY, Session
from runtime_py.generation.session_pool import (
    MIN_COPY,
    Interrupted,
    SessionPool,
    TooManySessions,
)

CAPACITY, LENGTHS = 40, [1, 4, 8]


class Rows:
    """An engine session: its rows are the ids themselves. It refuses wrong calls.

    With a window, rows before `lowest` are gone for it after each run of many.
    """

    def __init__(self, engine: RowsEngine) -> None:
        self.engine = engine
        self.lowest = 0
        self.rows = [-1] * CAPACITY
        self.closed = False

    def plan(self, length: int, num_cached: int = 0) -> list[Chunk]:
        return plan_chunks(length, CAPACITY, LENGTHS, num_cached=num_cached)

    def run(self, tokens: Sequence[int], chunk: Chunk) -> None:
        assert not self.closed
        assert self.reusable(chunk.start) == chunk.start
        assert self.rows[: chunk.start] == list(tokens[: chunk.start])
        self.rows[chunk.start : chunk.start + chunk.length] = [-1] * chunk.length
        self.rows[chunk.start : chunk.stop] = tokens[chunk.start : chunk.stop]
        self.engine.computed += chunk.stop - chunk.start
        self._forget(chunk.start)

    def prefill(self, tokens: Sequence[int], num_cached: int = 0) -> np.ndarray:
        assert num_cached < len(tokens)
        assert self.reusable(num_cached) == num_cached
        for chunk in self.plan(len(tokens), num_cached):
            with self.engine.steps.turn():
                self.run(tokens, chunk)
        return np.array(tokens)

    def decode(self, token: int, position: int) -> np.ndarray:
        assert self.reusable(position) == position
        with self.engine.steps.turn():
            self.rows[position] = token
        self.engine.computed += 1
        self._forget(position)
        assert -1 not in self.rows[: position + 1]
        return np.array(self.rows[: position + 1])

    def verify(self, tokens: Sequence[int], position: int) -> np.ndarray:
        length = next(length for length in LENGTHS if length >= len(tokens))
        self.run([*self.rows[:position], *tokens], Chunk(length, position, position + len(tokens)))
        return np.array(self.rows[: position + len(tokens)])

    def reusable(self, count: int) -> int:
        return count if self.lowest <= max(0, count - (self.engine.window or CAPACITY)) else 0

    def _forget(self, start: int) -> None:
        if self.engine.window is not None:
            self.lowest = 0 if start == 0 else max(self.lowest, start - self.engine.window - 3)

    def copy_rows(self, source: Rows, start: int, stop: int) -> None:
        assert source.reusable(stop) == stop
        self.lowest = source.lowest
        assert -1 not in source.rows[:stop]
        assert self.rows[:start] == source.rows[:start]
        self.rows[start:stop] = source.rows[start:stop]
        self.engine.copied += stop - start

    def close(self) -> None:
        self.closed = True


class RowsEngine:
    """An engine that counts what it computes. The logits after a text are the text."""

    capacity, vocab_size = CAPACITY, 10

    def __init__(self, window: int | None = None) -> None:
        self.window = window
        self.steps = StepLock(self)
        self.opened: list[Rows] = []
        self.computed = self.copied = 0

    def open_session(self) -> Rows:
        self.opened.append(Rows(self))
        return self.opened[-1]

    def close(self) -> None:
        self.steps.close(lambda: None)


def opened(max_sessions: int = 4, window: int | None = None) -> tuple[RowsEngine, SessionPool]:
    engine = RowsEngine(window)
    return engine, SessionPool(engine, max_sessions)


def text(*ids: int) -> list[int]:
    """Each id several times: as many as are worth copying."""
    return [token for token in ids for _ in range(MIN_COPY)]


def test_texts_one_after_the_other_use_one_set_of_caches() -> None:
    engine, pool = opened()
    for token in range(10):
        with Session(pool) as session:
            session.read([token, 1, 2])
    assert len(engine.opened) == 1


def test_a_dropped_session_counts_as_closed() -> None:
    engine, pool = opened()
    for token in range(10):
        Session(pool).read([token, 1, 2])
    assert len(engine.opened) == 1


def test_a_session_without_a_text_has_no_caches() -> None:
    engine, pool = opened(1)
    sessions = [Session(pool) for _ in range(10)]
    assert engine.opened == []
    sessions[3].read([1])
    assert len(engine.opened) == 1


def test_the_closed_caches_with_the_longest_prefix_are_taken() -> None:
    engine, pool = opened()
    texts = [[1, 1, 1], [1, 2, 1], [1, 2, 3], [2, 2, 2]]
    sessions = [Session(pool) for _ in texts]
    for session, ids in zip(sessions, texts, strict=True):
        session.read(ids)
    for session in sessions:
        session.close()
    engine.computed = 0
    Session(pool).read([1, 2, 3, 4])
    assert engine.computed == 1
    assert engine.opened[2].rows[:4] == [1, 2, 3, 4]


def test_the_least_recently_used_idle_session_gives_way_and_reads_again() -> None:
    engine, pool = opened(2)
    one, two, three = Session(pool), Session(pool), Session(pool)
    one.read([1, 1, 1])
    two.read([2, 2, 2])
    one.append(5)
    three.read([3, 3, 3])
    assert engine.opened[0].rows[:4] == [1, 1, 1, 5]
    assert engine.opened[1].rows[:3] == [3, 3, 3]
    assert two.append(6).tolist() == [2, 2, 2, 6]
    assert one.append(7).tolist() == [1, 1, 1, 5, 7]
    assert len(engine.opened) == 2


def test_rows_of_others_are_copied_if_there_are_enough() -> None:
    engine, pool = opened()
    source, other, short = Session(pool), Session(pool), Session(pool)
    source.read(text(1, 2, 3))
    engine.computed = 0
    assert other.read([*text(1, 2), 7]).tolist() == [*text(1, 2), 7]
    assert (engine.computed, engine.copied) == (1, 2 * MIN_COPY)
    assert short.read([*text(1)[1:], 7]).tolist() == [*text(1)[1:], 7]
    assert (engine.computed, engine.copied) == (1 + MIN_COPY, 2 * MIN_COPY)
    assert other.read([*text(1, 2, 3), 7]).tolist() == [*text(1, 2, 3), 7]  # of its own and of the first
    assert (engine.computed, engine.copied) == (2 + MIN_COPY, 3 * MIN_COPY)


def test_more_texts_than_the_bound() -> None:
    _, pool = opened(2)
    sessions = [Session(pool) for _ in range(3)]
    with sessions[0].generation(), sessions[1].generation():
        sessions[0].read([1])
        sessions[1].read([2])
        with pytest.raises(TooManySessions, match="2 texts are being generated, the limit of max_sessions"):
            sessions[2].read([3])
        sessions[1].close()
        sessions[2].read([3])
    sessions[2].append(4)


@pytest.mark.parametrize("number", [0, -1, 1.5, True, None, "4"])
def test_a_bound_that_is_no_number_of_texts(number: Any) -> None:
    with pytest.raises(UsageError, match=r"max_sessions is .*: it must be an integer of 1 or more"):
        SessionPool(RowsEngine(), number)


def test_a_session_that_lost_its_caches_does_not_give_them_back() -> None:
    _, pool = opened(1)
    one, two = Session(pool), Session(pool)
    one.read([1])
    with two.generation():
        two.read([2])
        one.close()
        with pytest.raises(TooManySessions):
            Session(pool).read([3])
    assert two.append(4).tolist() == [2, 4]


def test_a_prefix_that_is_gone_before_it_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other session reads another text while this one waits for its turn."""
    monkeypatch.setattr(session_pool, "MIN_COPY", 2)
    engine, pool = opened()
    source, target = Session(pool), Session(pool)
    source.read([1, 2, 3, 4])
    target.read([5])
    turn = engine.steps.turn

    def turn_after_another() -> object:
        monkeypatch.setattr(engine.steps, "turn", turn)
        source.read([9])
        return turn()

    monkeypatch.setattr(engine.steps, "turn", turn_after_another)
    assert target.read([1, 2, 3, 6]).tolist() == [1, 2, 3, 6]
    assert engine.copied == 0


def test_one_session_for_two_texts_at_once_is_refused() -> None:
    _, pool = opened()
    session = Session(pool)
    with session.generation(), pytest.raises(UsageError) as refused, session.generation():
        pass
    assert str(refused.value) == BUSY
    with session.generation():
        session.read([1])


def test_after_close() -> None:
    engine, pool = opened()
    one, two, unused = Session(pool), Session(pool), Session(pool)
    one.read([1])
    one.close()
    one.close()
    for use in (lambda: one.read([1]), lambda: one.append(1), lambda: one.generation().__enter__()):
        with pytest.raises(EngineClosed, match=SESSION_CLOSED):
            use()
    two.read([1])
    pool.close()
    pool.close()
    for session in (two, unused):
        with pytest.raises(EngineClosed, match=CLOSED):
            session.read([1])
        session.close()
    assert all(session.closed for session in engine.opened)


def test_an_engine_session_that_cannot_be_opened_is_tried_again() -> None:
    engine, pool = opened(1)
    engine.open_session = lambda: 1 // 0  # type: ignore[assignment, return-value]
    session = Session(pool)
    with pytest.raises(ZeroDivisionError):
        session.read([1])
    del engine.open_session
    assert Session(pool).read([1, 2]).tolist() == [1, 2]


class Sessions(RuleBasedStateMachine):
    """Texts of few ids in any number of sessions, each equal to the text alone."""

    window: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.engine, self.pool = opened(3, self.window)
        self.texts: dict[Session, list[int]] = {}
        self.generating: dict[Session, object] = {}

    indexes = st.integers(0, 5)
    pieces = st.lists(st.sampled_from([0, 1]), min_size=1, max_size=4).map(lambda ids: text(*ids))

    def session(self, index: int) -> Session:
        return list(self.texts)[index % len(self.texts)]

    @precondition(lambda self: len(self.texts) < 6)
    @rule()
    def open(self) -> None:
        self.texts[Session(self.pool)] = []

    @precondition(lambda self: self.texts)
    @rule(index=indexes, ids=pieces, end=st.integers(0, 9))
    def read(self, index: int, ids: list[int], end: int) -> None:
        session = self.session(index)
        prompt = [*ids, end]
        if len(self.generating) == 3 and session not in self.generating:
            with pytest.raises(TooManySessions):
                session.read(prompt)
            return
        assert session.read(prompt).tolist() == prompt
        self.texts[session] = prompt

    @precondition(lambda self: self.texts)
    @rule(index=indexes, token=st.integers(0, 1))
    def append(self, index: int, token: int) -> None:
        session = self.session(index)
        if not self.texts[session] or len(self.texts[session]) == CAPACITY:
            return
        if len(self.generating) == 3 and session not in self.generating:
            with pytest.raises(TooManySessions):
                session.append(token)
            return
        self.texts[session].append(token)
        assert session.append(token).tolist() == self.texts[session]

    @precondition(lambda self: self.texts and len(self.generating) < 3)
    @rule(index=indexes, token=st.integers(0, 9))
    def begin(self, index: int, token: int) -> None:
        session = self.session(index)
        if session not in self.generating:
            self.generating[session] = generation = session.generation()
            generation.__enter__()
            session.read([token])
            self.texts[session] = [token]

    @precondition(lambda self: self.generating)
    @rule(
        index=indexes, token=st.integers(0, 1), draft=st.lists(st.integers(0, 1), max_size=6), data=st.data()
    )
    def verify(self, index: int, token: int, draft: list[int], data: st.DataObject) -> None:
        session = list(self.generating)[index % len(self.generating)]
        if len(self.texts[session]) + 8 > CAPACITY:
            return
        self.texts[session].append(token)
        assert session.verify(token, draft).tolist() == self.texts[session] + draft
        for accepted in draft[: data.draw(st.integers(0, len(draft)))]:
            session.accept(accepted)
            self.texts[session].append(accepted)

    @precondition(lambda self: self.generating)
    @rule(index=indexes)
    def end(self, index: int) -> None:
        session = list(self.generating)[index % len(self.generating)]
        self.generating.pop(session).__exit__(None, None, None)

    @precondition(lambda self: self.texts)
    @rule(index=indexes, drop=st.booleans())
    def close(self, index: int, drop: bool) -> None:
        session = self.session(index)
        if session in self.generating:
            self.generating.pop(session).__exit__(None, None, None)
        del self.texts[session]
        if not drop:
            session.close()

    @invariant()
    def bounded(self) -> None:
        assert len(self.engine.opened) <= 3


Sessions.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSessions = Sessions.TestCase


class WindowSessions(Sessions):
    """Sessions whose engine forgets the rows before a window."""

    window = 6


WindowSessions.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestWindowSessions = WindowSessions.TestCase


def test_a_text_that_windows_do_not_hold_is_read_again() -> None:
    engine, pool = opened(1, window=2)
    session = Session(pool)
    session.read([*range(10)])
    assert session.read([*range(10), 1]).tolist() == [*range(10), 1]
    assert engine.computed == 11
    assert session.read([0, 1, 2, 3]).tolist() == [0, 1, 2, 3]
    assert engine.computed == 15


def test_the_reading_of_a_prompt_can_be_interrupted() -> None:
    engine, pool = opened(1)
    session = Session(pool)

    class Interrupting(Rows):
        def run(self, tokens: Sequence[int], chunk: Chunk) -> None:
            super().run(tokens, chunk)
            session.interrupt()

    engine.open_session = lambda: Interrupting(engine)  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        session.read([1] * 30)
    assert engine.computed == 8
    session.close()
    assert Session(pool).read([1] * 20).tolist() == [1] * 20
    assert engine.computed == 20, "the rows that were read stay"
