"""A session reads only new tokens, and gives the logits of a session that reads all."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_py.engines.litert.engine import LiteRtEngine
from runtime_py.generation.session import Session
from runtime_py.generation.session_pool import SessionPool
from runtime_py.model.contract import Contract
from tests.runtime_py.engines.litert.test_engine import assert_close
from tests.runtime_py.generation.test_generate import CountingEngine
from tests.runtime_py.toy import Toy

texts = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=1, max_size=6)


@given(texts)
def test_only_what_is_new_is_read(prompts: list[list[int]]) -> None:
    engine = CountingEngine(8)
    session = Session(SessionPool(engine))
    before: list[int] = []
    for prompt in prompts:
        same = 0
        while same < min(len(before), len(prompt) - 1) and before[same] == prompt[same]:
            same += 1
        engine.read = 0
        session.read(prompt)  # the engine asserts that cached tokens are in its caches
        assert engine.read == len(prompt) - same
        assert session.runs[0].start == same
        before = list(prompt)
        if len(before) < 8:
            session.append(2)
            before.append(2)
        assert engine.fed == before


class Interrupted(CountingEngine):
    """SIGINT comes when the KV caches have been changed, before `prefill` returns."""

    interrupts = False

    def reusable(self, count: int) -> int:
        return count

    def prefill(self, tokens: Sequence[int], num_cached: int = 0) -> np.ndarray:
        logits = super().prefill(tokens, num_cached)
        if self.interrupts:
            self.fed[num_cached:] = [-1] * (len(tokens) - num_cached)
            raise KeyboardInterrupt
        return logits


def test_the_interrupted_run_of_a_prompt_is_repeated() -> None:
    engine = Interrupted(8)
    session = Session(SessionPool(engine))
    session.read([1, 2, 3, 4])
    engine.interrupts = True
    with pytest.raises(KeyboardInterrupt):
        session.read([1, 2, 5, 6, 7])
    engine.interrupts = False
    engine.read = 0
    session.read([1, 2, 5, 6, 7])
    assert (engine.read, engine.fed) == (1, [1, 2, 5, 6, 7]), "rows of complete runs stay valid"


@pytest.mark.parametrize(
    "shape",
    [
        {"prefill_length": 6},
        {"prefill_length": 0, "cached_lengths": [3]},
        {"prefill_length": 6, "cached_lengths": [4, 2], "cache_layout": "BNTH"},
        {"prefill_length": 0, "cached_lengths": [5], "ai_edge": True},
    ],
    ids=str,
)
def test_on_litert_reusing_a_prefix_changes_nothing(shape: dict) -> None:
    toy = Toy(capacity=8, **shape)
    engine = LiteRtEngine(toy.file, Contract.parse(toy.contract))
    session = Session(SessionPool(engine))
    rng = np.random.default_rng(2)
    for _ in range(60):
        text = rng.integers(0, 2, 8).tolist()  # of two ids, so that beginnings are often the same
        length = int(rng.integers(1, 9))
        assert_close(session.read(text[:length]), toy.logits(text[:length]))
        for end in range(length, int(rng.integers(length, 9))):
            assert_close(session.append(text[end]), toy.logits(text[: end + 1]))
    session.close()
    engine.close()


def test_no_copies() -> None:
    session = Session(SessionPool(CountingEngine(8)))
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="a session cannot be copied or pickled"):
            duplicate(session)
