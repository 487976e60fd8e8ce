"""Sampling options: types and ranges, and the options of a caller over those of a file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from o2o.errors import UsageError
from runtime_py.generation.sampling import GREEDY, Sampling


@pytest.mark.parametrize(
    ("sampling", "draws"),
    [
        (Sampling(), False),
        (Sampling(repetition_penalty=1.1), False),
        (Sampling(suppress_tokens=[1]), False),
        (Sampling(seed=0), True),
        (Sampling(top_k=5), True),
        (Sampling(typical_p=0.5), True),
        (Sampling(temperature=0.0, seed=3), False),
        (Sampling(temperature=0.1), True),
        (Sampling(temperature=np.float32(0.1)), True),  # type: ignore[arg-type]
        (Sampling(temperature=0.1, do_sample=False), False),
        (Sampling(do_sample=True), True),
        (Sampling(temperature=0.1, greedy=True), False),
    ],
)
def test_whether_tokens_are_drawn(sampling: Sampling, draws: bool) -> None:
    assert sampling.draws == draws
    assert sampling.over(Sampling(do_sample=False)).draws == draws


FILE = Sampling(do_sample=True, temperature=0.6, top_p=0.9, repetition_penalty=1.1)


@pytest.mark.parametrize(
    ("sampling", "changes"),
    [
        (Sampling(), {}),
        (Sampling(temperature=0.8), {"temperature": 0.8}),
        (Sampling(top_k=3, seed=1), {"top_k": 3, "seed": 1}),
        (Sampling(repetition_penalty=1.0), {"repetition_penalty": 1.0}),
        (Sampling(temperature=0), {"temperature": 0, "do_sample": False}),
        (Sampling(logit_bias={1: 2.0}), {"logit_bias": {1: 2.0}}),
    ],
)
def test_options_over_those_of_a_file(sampling: Sampling, changes: dict[str, Any]) -> None:
    assert sampling.over(FILE) == replace(FILE, **changes)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("temperature", -1, "temperature is -1: it must be a number of 0 or more"),
        ("temperature", float("nan"), "temperature is nan"),
        ("temperature", float("inf"), "temperature is inf"),
        ("temperature", "hot", "temperature is 'hot': it must be a number"),
        ("temperature", True, "temperature is True: it must be a number"),
        ("top_k", -1, "top_k is -1: it must be an integer of 0 or more"),
        ("top_k", 1.5, "top_k is 1.5: it must be an integer"),
        ("top_p", -0.1, "top_p is -0.1: it must be a number from 0 to 1"),
        ("top_p", 1.1, "top_p is 1.1"),
        ("min_p", -0.1, "min_p is -0.1: it must be a number from 0 to 1"),
        ("typical_p", 0, "typical_p is 0: it must be a number above 0, at most 1"),
        ("repetition_penalty", 0, "repetition_penalty is 0: it must be a number above 0"),
        ("frequency_penalty", float("inf"), "frequency_penalty is inf: it must be a number"),
        ("seed", -1, "seed is -1"),
        ("greedy", 1, "greedy is 1: it must be true or false"),
        ("no_repeat_ngram_size", -1, "no_repeat_ngram_size is -1"),
        ("logit_bias", [1], r"logit_bias is \[1\]: it must be a number for each token id"),
        ("logit_bias", {"a": 1}, "logit_bias is {'a': 1}"),
        ("logit_bias", {-1: 1}, "logit_bias is {-1: 1}"),
        ("logit_bias", {1: float("inf")}, "logit_bias is {1: inf}"),
        ("sequence_bias", {(): 1.0}, "a number for each sequence of token ids"),
        ("bad_words_ids", [1], r"bad_words_ids is \[1\]: it must be a list of lists of token ids"),
        ("bad_words_ids", [[]], "bad_words_ids"),
        ("suppress_tokens", 5, "suppress_tokens is 5: it must be a list of token ids"),
        ("forced_eos_token_id", [], r"forced_eos_token_id is \[\]: it must be a token id or a list"),
        ("exponential_decay_length_penalty", [1], "a list of an integer of 0 or more and a number above 0"),
        ("remove_invalid_values", "yes", "it must be true or false"),
    ],
)
def test_wrong_types_and_ranges(option: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sampling(**{option: value})


def test_numbers_of_numpy_are_numbers() -> None:
    Sampling(temperature=np.float32(0.5), top_k=np.int64(3), seed=np.uint32(7))  # type: ignore[arg-type]


def test_no_temperature_with_sampling() -> None:
    with pytest.raises(UsageError, match="temperature is 0 and do_sample is true"):
        Sampling(do_sample=True, temperature=0)
    assert GREEDY.over(FILE) == GREEDY
    assert Sampling(temperature=0).over(FILE).draws is False
    assert Sampling(do_sample=False).over(FILE).draws is False


def test_a_temperature_of_0_in_a_file_that_does_not_sample_is_none() -> None:
    merged = Sampling(top_k=3).over(Sampling(do_sample=False, temperature=0, top_p=0.5))
    assert (merged.draws, merged.temperature, merged.top_p) == (True, None, 0.5)
