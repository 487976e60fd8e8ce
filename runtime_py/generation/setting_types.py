"""The type and range of each generation setting, of a caller or of `generation_config.json`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from o2o.errors import UsageError


@dataclass(frozen=True)
class SettingType:
    """A type with a range.

    Attributes:
        description: Names it in messages.
        accepts: Whether a value is of the type and in the range.
    """

    description: str
    accepts: Callable[[Any], bool]


def check(name: str, value: Any) -> None:
    """Check a setting.

    Args:
        name: A key of `TYPES`.
        value: Its value.

    Raises:
        UsageError: The value has another type or is out of range.
    """
    if not TYPES[name].accepts(value):
        shown = f"{value:g}" if isinstance(value, float) else repr(value)
        shown = shown if len(shown) <= _LONGEST_SHOWN else f"{shown[: _LONGEST_SHOWN - 3]}..."
        raise UsageError(f"{name} is {shown}: it must be {TYPES[name].description}")


_LARGEST = float(np.finfo(np.float32).max)
_LONGEST_SHOWN = 60


def _is_integer(value: Any, lowest: float = -math.inf) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= lowest


def _is_number(value: Any) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    number: Any = value
    return bool(-_LARGEST <= number <= _LARGEST)


def _is_bias(value: Any) -> bool:
    return _is_number(value) or (isinstance(value, float) and value == -math.inf)


def _is_list(value: Any, accepts: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and all(map(accepts, value))


def _is_id(value: Any) -> bool:
    return _is_integer(value, 0)


def _is_sequence(value: Any) -> bool:
    return _is_list(value, _is_id) and len(value) > 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _integer(lowest: int) -> SettingType:
    return SettingType(f"an integer of {lowest} or more", lambda value: _is_integer(value, lowest))


def _number(range_text: str, in_range: Callable[[float], bool]) -> SettingType:
    return SettingType(f"a number {range_text}", lambda value: _is_number(value) and in_range(value))


def _mapping(description: str, key: Callable[[Any], bool], value: Callable[[Any], bool]) -> SettingType:
    return SettingType(
        description,
        lambda mapping: (
            isinstance(mapping, Mapping) and all(map(key, mapping)) and all(map(value, mapping.values()))
        ),
    )


_FLAG = SettingType("true or false", lambda value: isinstance(value, bool))
_FINITE = SettingType("a number", _is_number)
_NOT_NEGATIVE = _number("of 0 or more", lambda value: value >= 0)
_POSITIVE = _number("above 0", lambda value: value > 0)
_PROBABILITY = _number("from 0 to 1", lambda value: 0 <= value <= 1)
_SHARE = _number("above 0, at most 1", lambda value: 0 < value <= 1)
# Ids that no token has are without effect in these lists, as in transformers.
_IDS = SettingType("a list of token ids", lambda value: _is_list(value, _is_integer))
_ID_OR_IDS = SettingType(
    "a token id or a list of token ids", lambda value: _is_integer(value) or _IDS.accepts(value)
)

TYPES: Mapping[str, SettingType] = {
    "greedy": _FLAG,
    "do_sample": _FLAG,
    "seed": _integer(0),
    "temperature": _NOT_NEGATIVE,
    "top_k": _integer(0),
    "top_p": _PROBABILITY,
    "min_p": _PROBABILITY,
    "typical_p": _SHARE,
    "top_h": _SHARE,
    "epsilon_cutoff": _PROBABILITY,
    "eta_cutoff": _PROBABILITY,
    "repetition_penalty": _POSITIVE,
    "encoder_repetition_penalty": _POSITIVE,
    "frequency_penalty": _FINITE,
    "presence_penalty": _FINITE,
    "exponential_decay_length_penalty": SettingType(
        "a list of an integer of 0 or more and a number above 0",
        lambda value: (
            _is_list(value, _is_number) and len(value) == 2 and _is_integer(value[0], 0) and value[1] > 0
        ),
    ),
    "no_repeat_ngram_size": _integer(0),
    "encoder_no_repeat_ngram_size": _integer(0),
    "logit_bias": _mapping("a number for each token id", _is_id, _is_bias),
    "sequence_bias": _mapping("a number for each sequence of token ids", _is_sequence, _is_bias),
    "bad_words_ids": SettingType("a list of lists of token ids", lambda value: _is_list(value, _is_sequence)),
    "suppress_tokens": _IDS,
    "begin_suppress_tokens": _IDS,
    "forced_bos_token_id": _integer(0),
    "forced_eos_token_id": SettingType(
        "a token id or a list of token ids", lambda value: _is_id(value) or _is_sequence(value)
    ),
    "remove_invalid_values": _FLAG,
    "renormalize_logits": _FLAG,
    "eos_token_id": _ID_OR_IDS,
    "max_length": _integer(1),
    "max_new_tokens": _integer(1),
    "min_length": _integer(0),
    "min_new_tokens": _integer(0),
    "max_time": _NOT_NEGATIVE,
    "stop_strings": SettingType(
        "a string or a list of strings, none of them empty",
        lambda value: _is_text(value) or _is_list(value, _is_text),
    ),
    "num_beams": _integer(1),
    "num_beam_groups": _integer(1),
    "num_return_sequences": _integer(1),
    "penalty_alpha": _FINITE,
    "guidance_scale": _FINITE,
    "log_probabilities": _integer(0),
}
"""The type of each setting: names of transformers, then those of `Sampling` and `GenerationOptions`."""
