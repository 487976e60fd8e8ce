"""The loop, on an engine that knows what it must be asked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from o2o.errors import ModelError, UsageError
from runtime_py.engines.prefill_plan import Chunk, plan_chunks
from runtime_py.generation.generate import generate
from runtime_py.generation.sampling import Sampler, Sampling, greedy
from runtime_py.generation.session import Session
from runtime_py.text.detokenizer import Detokenizer


class CountingEngine:
    """Says that t is followed by t + 1, and refuses to be driven wrongly."""

    vocab_size = 100

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.fed: list[int] = []
        self.read = 0

    def _next(self) -> np.ndarray:
        return np.eye(self.vocab_size, dtype=np.float32)[(self.fed[-1] + 1) % self.vocab_size]

    def plan(self, length: int, num_cached: int = 0) -> list[Chunk]:
        return plan_chunks(length, self.capacity, [1], num_cached=num_cached)

    def prefill(self, tokens: Sequence[int], num_cached: int = 0) -> np.ndarray:
        assert 1 <= len(tokens) <= self.capacity
        assert num_cached < len(tokens)
        assert self.fed[:num_cached] == list(tokens[:num_cached])
        self.read = len(tokens) - num_cached
        self.fed = list(tokens)
        return self._next()

    def decode(self, token: int, position: int) -> np.ndarray:
        assert position == len(self.fed) < self.capacity
        self.fed.append(token)
        return self._next()

    def close(self) -> None:
        pass


class Digits:
    """Ids as text; 99 is special."""

    vocab_size = 100

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(str(token) for token in ids if not self.is_hidden(token))

    def is_hidden(self, token: int) -> bool:
        return token == 99

    def is_byte(self, token: int) -> bool:
        return token == 50


def run(capacity: int, prompt: list[int], **options):
    engine = CountingEngine(capacity)
    return list(generate(Session(engine), prompt, Detokenizer(Digits()), **options)), engine


@pytest.mark.parametrize("length", range(1, 9))
def test_to_the_end_of_the_cache(length):
    tokens, engine = run(8, list(range(length)))
    assert [token.id for token in tokens] == list(range(length, 9))  # S + 1 - P of them
    assert [token.finish for token in tokens] == [None] * (len(tokens) - 1) + ["capacity"]
    assert engine.fed == list(range(8))  # the last one is never fed back


def test_ends_after_the_end_of_sequence_which_is_given_but_not_shown():
    tokens, _ = run(50, [96, 97], eos=[99, 3])
    assert [token.id for token in tokens] == [98, 99]
    assert tokens[-1].finish == "eos"
    assert "".join(token.text for token in tokens) == "98"


def test_any_of_several_ends_it():
    tokens, _ = run(50, [10], eos={40, 13})
    assert [token.id for token in tokens] == [11, 12, 13]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_ends_after_enough(count):
    tokens, engine = run(50, [10], max_new_tokens=count)
    assert [token.id for token in tokens] == list(range(11, 11 + count))
    assert tokens[-1].finish == "length"
    assert len(engine.fed) == count  # nothing is computed that is not used


def test_enough_and_end_of_sequence_at_once():
    tokens, _ = run(50, [10], max_new_tokens=2, eos=[12])
    assert tokens[-1].finish == "eos"


def test_text_held_back_comes_with_the_last_token():
    tokens, _ = run(60, [48], max_new_tokens=2)
    assert [token.text for token in tokens] == ["49", " 50"]


def test_nothing_is_computed_before_it_is_wanted():
    engine = CountingEngine(8)
    tokens = generate(Session(engine), [1], Detokenizer(Digits()))
    assert engine.fed == []
    next(tokens)
    assert engine.fed == [1]


class OneMore(Sampling):
    def sampler(self) -> Sampler:
        return lambda logits, ids: greedy(logits) + len(ids)


def test_the_sampler_chooses_and_knows_what_was_before():
    tokens, _ = run(50, [10, 20], max_new_tokens=3, sampling=OneMore())
    assert [token.id for token in tokens] == [21 + 2, 24 + 3, 28 + 4]


def test_a_stop_token_is_given_and_ends_it():
    tokens, _ = run(50, [10], stop_tokens=[13], eos=[40])
    assert [token.id for token in tokens] == [11, 12, 13]
    assert tokens[-1].finish == "stop"


def test_a_stop_string_is_not_shown():
    tokens, _ = run(60, [9], stop=["13 14", "no"])
    assert [token.id for token in tokens] == [10, 11, 12, 13, 14]
    assert [token.text for token in tokens] == ["10", " 1", "1 12", " ", ""]
    assert tokens[-1].finish == "stop"


def test_what_only_began_like_a_stop_string_is_shown():
    tokens, _ = run(60, [9], stop=["13 15"], max_new_tokens=4)
    assert "".join(token.text for token in tokens) == "10 11 12 13"
    assert tokens[-1].finish == "length"
    with pytest.raises(UsageError, match="a stop string is empty"):
        run(60, [9], stop=["x", ""])


def test_a_stop_string_in_what_was_held_back():
    tokens, _ = run(60, [48], stop=[" 5"], max_new_tokens=2)
    assert "".join(token.text for token in tokens) == "49"


def test_prompts_that_do_not_fit():
    with pytest.raises(
        UsageError, match=r"has 9 tokens, the KV caches hold 8: shorten it, or .*--max-length"
    ):
        run(8, list(range(9)))
    with pytest.raises(UsageError, match="empty"):
        run(8, [])
    with pytest.raises(ModelError, match="id 100, the model has ids below 100"):
        run(8, [100])
