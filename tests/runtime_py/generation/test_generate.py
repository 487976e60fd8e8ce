"""The loop, on an engine that knows what it must be asked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from o2o.errors import ModelError, UsageError
from runtime_py.engines.prefill_plan import Chunk, plan_chunks
from runtime_py.engines.step_lock import StepLock
from runtime_py.generation.generate import generate
from runtime_py.generation.generation_config import GenerationConfig
from runtime_py.generation.sampling import GREEDY, Sampling
from runtime_py.generation.session import Session
from runtime_py.generation.session_pool import SessionPool
from runtime_py.text.detokenizer import Detokenizer


class CountingEngine:
    """Says that t is followed by t + 1, and refuses to be driven wrongly."""

    vocab_size = 100

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.fed: list[int] = []
        self.read = 0
        self.steps = StepLock(self)

    def _next(self) -> np.ndarray:
        return np.eye(self.vocab_size, dtype=np.float32)[(self.fed[-1] + 1) % self.vocab_size]

    def plan(self, length: int, num_cached: int = 0) -> list[Chunk]:
        return plan_chunks(length, self.capacity, [1], num_cached=num_cached)

    def verify_lengths(self, position: int) -> list[int]:
        return []

    def verify_setup(self, length: int) -> float:
        return 0

    def open_session(self) -> CountingEngine:
        return self

    def run(self, tokens: Sequence[int], chunk: Chunk) -> None:
        assert chunk.start < chunk.stop < len(tokens) <= self.capacity
        assert self.fed[: chunk.start] == list(tokens[: chunk.start])
        self.read += chunk.stop - chunk.start
        self.fed = list(tokens[: chunk.stop])

    def reusable(self, count: int) -> int:
        return count

    def prefill(self, tokens: Sequence[int], num_cached: int = 0) -> np.ndarray:
        assert 1 <= len(tokens) <= self.capacity
        assert num_cached < len(tokens)
        assert self.fed[:num_cached] == list(tokens[:num_cached])
        self.read += len(tokens) - num_cached
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
    return list(generate(Session(SessionPool(engine)), prompt, Detokenizer(Digits()), **options)), engine


@pytest.mark.parametrize("length", range(1, 9))
def test_to_the_end_of_the_cache(length):
    tokens, engine = run(8, list(range(length)))
    assert [token.id for token in tokens] == list(range(length, 9))  # S + 1 - P of them
    assert [token.finish for token in tokens] == [None] * (len(tokens) - 1) + ["capacity"]
    assert engine.fed == list(range(8))  # the last one is never fed back


def test_ends_after_the_end_of_sequence_which_is_given_but_not_shown():
    tokens, _ = run(50, [96, 97], config=GenerationConfig(eos_token_id=(99, 3)))
    assert [token.id for token in tokens] == [98, 99]
    assert tokens[-1].finish == "eos"
    assert "".join(token.text for token in tokens) == "98"


def test_any_of_several_ends_it():
    tokens, _ = run(50, [10], config=GenerationConfig(eos_token_id=(40, 13)))
    assert [token.id for token in tokens] == [11, 12, 13]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_ends_after_enough(count):
    tokens, engine = run(50, [10], max_new_tokens=count)
    assert [token.id for token in tokens] == list(range(11, 11 + count))
    assert tokens[-1].finish == "length"
    assert len(engine.fed) == count  # nothing is computed that is not used


def test_enough_and_end_of_sequence_at_once():
    tokens, _ = run(50, [10], max_new_tokens=2, config=GenerationConfig(eos_token_id=(12,)))
    assert tokens[-1].finish == "eos"


def test_text_held_back_comes_with_the_last_token():
    tokens, _ = run(60, [48], max_new_tokens=2)
    assert [token.text for token in tokens] == ["49", " 50"]


def test_nothing_is_computed_before_it_is_wanted():
    engine = CountingEngine(8)
    tokens = generate(Session(SessionPool(engine)), [1], Detokenizer(Digits()))
    assert engine.fed == []
    next(tokens)
    assert engine.fed == [1]


def test_a_processor_of_the_caller_sees_the_ids_and_changes_the_choice():
    def later(ids, logits):
        logits[:] = np.roll(logits, len(ids))
        return logits

    for sampling in (None, GREEDY, Sampling(top_k=1)):
        tokens, _ = run(
            50, [10, 20], max_new_tokens=3, sampling=sampling, logits_processors=[later], log_probabilities=1
        )
        assert [token.id for token in tokens] == [21 + 2, 24 + 3, 28 + 4]
        assert [token.top[0].id for token in tokens] == [21, 24, 28], "the model's own logits"


def test_a_processor_cannot_change_the_text():
    def shorten(ids, logits):
        ids.clear()
        return logits

    tokens, _ = run(50, [10, 20], max_new_tokens=3, logits_processors=[shorten])
    assert [token.id for token in tokens] == [21, 22, 23]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "returned NoneType: it must return an array of the logits' shape"),
        (np.zeros(99, np.float32), r"returned an array of shape \[99\]: .*\[100\]"),
        (np.full(100, np.nan, np.float32), "returned NaN"),
        (np.zeros(100, bool), "returned bool numbers: it must return floats"),
        (np.zeros(100, object), "returned object numbers"),
        (np.zeros(100, complex), "returned complex128 numbers"),
    ],
)
def test_a_processor_that_returns_no_logits(result, message):
    with pytest.raises(UsageError, match=message):
        run(50, [10], logits_processors=[lambda ids, logits: result])
    with pytest.raises(ModelError, match="no token can be chosen"):
        run(50, [10], logits_processors=[lambda ids, logits: np.full_like(logits, -np.inf)])


def test_log_probabilities():
    weights = np.exp(np.eye(100)[11])
    for token in run(50, [10], max_new_tokens=1, log_probabilities=3, sampling=Sampling(temperature=0.1))[0]:
        assert token.log_probability == pytest.approx(np.log(weights[token.id] / weights.sum()))
        assert [top.id for top in token.top] == [11, 0, 1]
        assert token.top[0].log_probability == pytest.approx(1 - np.log(weights.sum()))
    (token,) = run(50, [10], max_new_tokens=1, log_probabilities=0)[0]
    assert (token.top, token.log_probability) == ((), pytest.approx(1 - np.log(weights.sum())))
    (token,) = run(50, [10], max_new_tokens=1)[0]
    assert (token.top, token.log_probability) == ((), None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0: it must be an integer of 1 or more"),
        ({"min_new_tokens": -1}, "min_new_tokens is -1: it must be an integer of 0 or more"),
        ({"log_probabilities": 1.5}, "log_probabilities is 1.5: it must be an integer of 0 or more"),
        ({"sampling": {"temperature": 1}}, r"sampling is {'temperature': 1}: it must be a Sampling"),
        ({"logits_processors": lambda ids, logits: logits}, "must be a list of functions"),
        ({"logits_processors": [None]}, "must be a list of functions"),
        ({"stop": [5]}, "a stop string is 5: it must be a string"),
        ({"min_new_tokens": 3, "max_new_tokens": 2}, "min_new_tokens is 3, and max_new_tokens only 2"),
        ({"stop": 5}, "stop is 5: it must be a string or a list of strings"),
        ({"sampling": Sampling(logit_bias={100: 1.0})}, "logit_bias has the token id 100, the model has ids"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(UsageError, match=message):
        run(50, [10], **options)


def settings(path="generation_config.json", **values) -> GenerationConfig:
    sampling = {key: values.pop(key) for key in list(values) if hasattr(Sampling, key)}
    return GenerationConfig(sampling=Sampling(**sampling), path=path, **values)


@pytest.mark.parametrize(
    ("config", "options", "ids", "finish"),
    [
        ({"max_length": 3}, {}, [11, 12], "length"),
        ({"max_length": 5}, {}, [11, 12, 13], "eos"),
        ({"max_length": 4, "max_new_tokens": 2}, {}, [11, 12], "length"),
        ({"max_length": 1}, {"max_new_tokens": 2}, [11, 12], "length"),
        ({"max_new_tokens": 1}, {"max_new_tokens": 2}, [11, 12], "length"),
        ({"max_time": 0}, {}, [11], "length"),
        ({"max_time": 1000, "max_length": 2}, {}, [11], "length"),
        ({"stop_strings": ("12",)}, {"stop": ["13"]}, [11, 12], "stop"),
        ({"max_length": 3, "forced_eos_token_id": 13}, {}, [11, 13], "eos"),
        ({"max_length": 4, "forced_eos_token_id": 5}, {}, [11, 12, 5], "length"),
        ({"min_length": 5}, {}, [11, 12, 0, 1], None),
        ({"min_new_tokens": 3, "min_length": 9}, {}, [11, 12, 0, 1], None),
        ({"min_new_tokens": 2, "min_length": 9}, {}, [11, 12, 13], "eos"),
        ({}, {"min_new_tokens": 3}, [11, 12, 0, 1], None),
        ({"min_new_tokens": 5}, {"min_new_tokens": 0}, [11, 12, 13], "eos"),
        ({"min_length": 5}, {"sampling": GREEDY}, [11, 12, 13], "eos"),
        ({"min_length": 5}, {"sampling": GREEDY, "min_new_tokens": 3}, [11, 12, 0, 1], None),
        ({"suppress_tokens": [12]}, {}, [11, 0, 1], None),
        ({"suppress_tokens": [12]}, {"sampling": GREEDY}, [11, 12, 13], "eos"),
        ({"suppress_tokens": [12]}, {"sampling": Sampling(suppress_tokens=[])}, [11, 12, 13], "eos"),
        ({"max_length": 2}, {"sampling": GREEDY}, [11], "length"),
    ],
)
def test_settings_of_the_checkpoint(config, options, ids, finish):
    """13 is the end of sequence. Without the next token, all others are equally likely."""
    engine = CountingEngine(50)
    tokens = generate(
        Session(SessionPool(engine)),
        [10],
        Detokenizer(Digits()),
        config=settings(eos_token_id=(13,), **config),
        **options,
    )
    first = [next(tokens) for _ in ids]
    assert [token.id for token in first] == ids
    assert first[-1].finish == finish


def test_settings_that_the_model_or_the_prompt_do_not_suit():
    with pytest.raises(UsageError, match=r"has 3 tokens, and max_length in g.* is 3: .*--max-new-tokens"):
        run(50, [1, 2, 3], config=settings(max_length=3))
    with pytest.raises(ModelError, match=r"generation_config.json: bad_words_ids has the token id 100"):
        run(50, [1], config=settings(bad_words_ids=[[1, 100]]))


def test_the_last_token_of_a_full_context_is_the_forced_one():
    tokens, _ = run(5, [10], config=settings(forced_eos_token_id=[40]))
    assert [token.id for token in tokens] == [11, 12, 13, 14, 40]


def test_a_stop_token_is_given_and_ends_it():
    tokens, _ = run(50, [10], stop_tokens=[13], config=GenerationConfig(eos_token_id=(40,)))
    assert [token.id for token in tokens] == [11, 12, 13]
    assert tokens[-1].finish == "stop"


def test_a_stop_string_is_not_shown():
    tokens, _ = run(60, [9], stop=["13 14", "no"])
    assert [token.id for token in tokens] == [10, 11, 12, 13, 14]
    assert [token.text for token in tokens] == ["10", " 1", "1 12", " ", ""]
    assert tokens[-1].finish == "stop"


def test_one_stop_string_need_not_be_in_a_list():
    tokens, _ = run(60, [9], stop="13 14")
    assert [token.id for token in tokens] == [10, 11, 12, 13, 14]


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
    for wrong in ([-1], [1.5], [True], "12", None, iter([1])):
        with pytest.raises(UsageError, match="the prompt"):
            run(8, wrong)


@pytest.mark.parametrize("token", [-1, 100, 1.5, True, "a", None])
def test_stop_tokens_are_ids_of_the_model(token):
    with pytest.raises(UsageError, match="stop_tokens"):
        run(8, [1], stop_tokens=[token])
