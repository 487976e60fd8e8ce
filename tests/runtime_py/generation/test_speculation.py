"""Speculative decoding: the same text in fewer runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from o2o.errors import ModelError
from runtime_py.engines.prefill_plan import Chunk, plan_chunks
from runtime_py.engines.step_lock import StepLock
from runtime_py.generation.generate import Token, generate
from runtime_py.generation.sampling import Sampling
from runtime_py.generation.session import Session
from runtime_py.generation.session_pool import SessionPool
from runtime_py.generation.verification import Verification
from runtime_py.text.detokenizer import Detokenizer
from tests.runtime_py.generation.test_generate import Digits

V = 12


class Engine:
    """Its logits depend on the last two tokens, so a greedy text soon repeats. It refuses wrong calls."""

    vocab_size = V

    def __init__(
        self, capacity: int, lengths: tuple[int, ...], spread: float = 3.0, rounding: float = 0
    ) -> None:
        self.capacity, self.lengths = capacity, lengths
        self.table = np.random.default_rng(1).normal(0, spread, (V, V, V)).astype(np.float32)
        self.rounding = rounding  # of the logits of several tokens
        self.steps = StepLock(self)
        self.fed: list[int] = []
        self.runs: list[int] = []

    def _next(self) -> np.ndarray:
        return self.table[self.fed[-2] if len(self.fed) > 1 else 0, self.fed[-1]].copy()

    def plan(self, length: int, num_cached: int = 0) -> list[Chunk]:
        return plan_chunks(length, self.capacity, [1], num_cached=num_cached)

    def verify_lengths(self, position: int) -> list[int]:
        return [length for length in self.lengths if position + length <= self.capacity]

    def verify_setup(self, length: int) -> float:
        return 0

    def open_session(self) -> Engine:
        return self

    def reusable(self, count: int) -> int:
        return count

    def run(self, tokens: Sequence[int], chunk: Chunk) -> None:
        self.fed = list(tokens[: chunk.stop])

    def prefill(self, tokens: Sequence[int], num_cached: int = 0) -> np.ndarray:
        self.fed = list(tokens)
        return self._next()

    def decode(self, token: int, position: int) -> np.ndarray:
        self.runs.append(1)
        return self._feed([token], position)[0]

    def verify(self, tokens: Sequence[int], position: int) -> np.ndarray:
        length = next(length for length in self.lengths if length >= len(tokens))
        assert position + length <= self.capacity
        self.runs.append(length)
        return self._feed(tokens, position) * np.float32(1 + self.rounding)

    def _feed(self, tokens: Sequence[int], position: int) -> np.ndarray:
        assert position <= len(self.fed)
        assert position < self.capacity
        self.fed = self.fed[:position]
        rows = []
        for token in tokens:
            self.fed.append(token)
            rows.append(self._next())
        return np.array(rows)

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def drafts_cost_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Verification, "add", lambda self, length, seconds: None)


def run(engine: Engine, prompt: Sequence[int] = (1, 2, 3), **options: Any) -> tuple[list[Token], Session]:
    session = Session(SessionPool(engine))  # type: ignore[arg-type]
    return list(generate(session, prompt, Detokenizer(Digits()), **options)), session  # type: ignore[arg-type]


OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "limit": {"max_new_tokens": 61},
    "stop string": {"stop": " 7 1", "max_new_tokens": 80},
    "stop token": {"stop_tokens": [5], "max_new_tokens": 80},
    "drawn": {"sampling": Sampling(temperature=0.5, seed=3)},
    "truncated": {"sampling": Sampling(temperature=0.7, top_k=4, top_p=0.9, seed=4)},
    "penalties": {
        "sampling": Sampling(repetition_penalty=1.2, frequency_penalty=0.1, presence_penalty=0.2, seed=5)
    },
    "n-grams": {"sampling": Sampling(no_repeat_ngram_size=4)},
    "log-probabilities": {"log_probabilities": 2},
}


@pytest.mark.parametrize("lengths", [(4,), (2, 8), (4, 8, 16)])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_text_is_the_same(name: str, lengths: tuple[int, ...]) -> None:
    plain, fast = Engine(90, ()), Engine(90, lengths)
    expected, _ = run(plain, **OPTIONS[name])
    tokens, session = run(fast, **OPTIONS[name])
    assert tokens == expected
    assert session.drafts.accepted <= session.drafts.drafted
    if name in ("greedy", "limit", "drawn", "log-probabilities"):
        assert session.drafts.accepted > 10
        assert len(fast.runs) < len(plain.runs)


def test_nothing_is_drafted_beyond_the_limit() -> None:
    """At the end of the caches and before the last token, runs are shorter."""
    engine = Engine(41, (8,))
    _, session = run(engine, [1, 2] * 5)
    assert session.drafts.runs
    assert len(engine.fed) == 41
    engine = Engine(100, (8,))
    tokens, session = run(engine, [1, 2, 3] * 5, max_new_tokens=1)
    assert len(tokens) == 1
    assert not session.drafts.runs


def test_the_frequencies_of_drawn_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A draft is always the same token after the same two; what is drawn keeps its distribution."""
    monkeypatch.setattr(Verification, "cost", lambda self, length: 0.5)
    engine = Engine(4001, (4, 8), spread=0)
    engine.table += np.linspace(0, 2, V, dtype=np.float32)
    tokens, session = run(engine, sampling=Sampling(temperature=1.0, seed=11))
    assert session.drafts.drafted > 2000
    counts = np.bincount([token.id for token in tokens], minlength=V)
    p = np.exp(np.linspace(0, 2, V))
    expected = len(tokens) * p / p.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 24.7  # chi-square, 11 degrees: 99 %


def test_processors_of_the_caller_see_each_token_once() -> None:
    seen: list[tuple[int, ...]] = []

    def remember(ids: Sequence[int], logits: np.ndarray) -> np.ndarray:
        seen.append(tuple(ids))
        return logits

    tokens, session = run(Engine(80, (4, 8)), logits_processors=[remember])
    assert session.drafts.accepted
    text = [1, 2, 3, *(token.id for token in tokens)]
    assert seen == [tuple(text[:length]) for length in range(3, len(text))]


class Keys:
    """After token 5 the text goes on with 7, 8 or 9, 4, 6: with one choice within what is forced."""

    def __call__(self, ids: Sequence[int], logits: np.ndarray) -> np.ndarray:
        allowed = self._allowed(ids)
        return np.where([not allowed or token in allowed for token in range(V)], logits, -np.inf)

    def forced_tokens(self, ids: Sequence[int]) -> list[int]:
        rest = {5: [7, 8, 4, 6], 7: [8, 4, 6], 8: [4, 6], 9: [4, 6], 4: [6]}
        return rest.get(ids[-1], []) if self._allowed(ids) else []

    def _allowed(self, ids: Sequence[int]) -> list[int]:
        for back in range(1, 5):
            if len(ids) >= back and ids[-back] == 5:
                return [[7], [8, 9], [4], [6]][back - 1]
        return []


def test_a_grammar_drafts_what_it_forces() -> None:
    options: dict[str, Any] = {"sampling": Sampling(temperature=9.0, seed=3), "logits_processors": [Keys()]}
    plain, fast = Engine(90, ()), Engine(90, (4, 8))
    expected, _ = run(plain, **options)
    tokens, session = run(fast, **options)
    assert tokens == expected
    keys = [token.id for token in expected].count(5)
    assert keys > 2
    assert session.drafts.accepted >= 2 * (keys - 1)
    assert len(fast.runs) <= len(plain.runs) - 2 * (keys - 1)


def test_a_text_goes_on_after_a_stream_that_was_closed_within_a_draft() -> None:
    engine = Engine(90, (8,))
    session = Session(SessionPool(engine))  # type: ignore[arg-type]
    stream = generate(session, [1, 2] * 6, Detokenizer(Digits()))  # type: ignore[arg-type]
    text = [1, 2] * 6
    while session.drafts.accepted < 2:
        text.append(next(stream).id)
    stream.close()
    more = [token.id for token in generate(session, [*text, 9], Detokenizer(Digits()), max_new_tokens=9)]  # type: ignore[arg-type]
    expected, _ = run(Engine(90, ()), [*text, 9], max_new_tokens=9)
    assert more == [token.id for token in expected]


def test_logits_that_are_not_finite_are_reported_where_they_are_used() -> None:
    engine = Engine(60, (8,))
    text = [1, 2, 3, *(token.id for token in run(Engine(60, ()))[0])]
    engine.table[text[40], text[41]] = np.nan
    with pytest.raises(ModelError, match="not finite"):
        run(engine)


def test_drafts_whose_costs_are_high_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Verification, "cost", lambda self, length: 1.0 * length)
    engine = Engine(90, (4, 8))
    _, session = run(engine)
    assert not session.drafts.runs


def test_an_engine_that_rounds_otherwise_uses_no_drafts_unless_that_is_allowed() -> None:
    expected, _ = run(Engine(90, ()))
    engine = Engine(90, (4, 8), rounding=1e-6)
    tokens, session = run(engine)
    assert tokens == expected
    assert not session.drafts.runs
    assert len(engine.runs) - engine.runs.count(1) == 1  # the trial
    session = Session(SessionPool(Engine(90, (4, 8), rounding=1e-6), rounded_drafts=True))  # type: ignore[arg-type]
    list(generate(session, (1, 2, 3), Detokenizer(Digits())))  # type: ignore[arg-type]
    assert session.drafts.accepted
