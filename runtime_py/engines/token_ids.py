"""Token ids: the one check of ids and positions, for all engines and all callers."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Set
from typing import Any, Protocol

from o2o.errors import ModelError, UsageError


class Limits(Protocol):
    """What limits ids and positions: an engine, or a session."""

    @property
    def capacity(self) -> int:
        """S, the number of rows of the KV caches."""
        ...

    @property
    def vocab_size(self) -> int:
        """V. Every token id is below it."""
        ...


def token_ids(ids: Any, name: str = "the prompt") -> list[int]:
    """Return token ids as a list of Python integers.

    Args:
        ids: A list, tuple, range or array [P] of integers.
        name: Their name in messages.

    Returns:
        The ids [P].

    Raises:
        UsageError: `ids` is something else, or an id is negative or no integer (a bool is none).
    """
    kind = type(ids).__name__
    if isinstance(ids, (str, bytes, bytearray, Mapping, Set)) or not hasattr(ids, "__getitem__"):
        raise UsageError(f"{name} is of type {kind}, not a list of token ids")
    if not hasattr(ids, "__len__") or getattr(ids, "ndim", 1) != 1:
        raise UsageError(f"{name} is of type {kind} without one dimension: give a flat list of token ids")
    numbers = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    if not set(map(type, numbers)) <= {int}:
        numbers = [
            _integer(number, f"{name} has {_shown(number)} at index {index}")
            for index, number in enumerate(numbers)
        ]
    if numbers and min(numbers) < 0:
        raise UsageError(
            f"{name} has {min(numbers)} at index {numbers.index(min(numbers))}: no token id is below 0"
        )
    return numbers


def stop_ids(ids: Iterable[Any], vocab_size: int, name: str) -> frozenset[int]:
    """Return the ids that end a text.

    Args:
        ids: Integers in any order.
        vocab_size: V.
        name: Their name in messages.

    Returns:
        The ids.

    Raises:
        UsageError: `ids` holds something else than ids, or an id that is not below V.
    """
    if isinstance(ids, Set):
        ids = sorted(ids, key=str)
    numbers = token_ids(ids, name)
    if numbers and max(numbers) >= vocab_size:
        raise UsageError(f"{name} has {max(numbers)}, the model has token ids below {vocab_size}")
    return frozenset(numbers)


def check_prompt(ids: Any, limits: Limits, num_cached: int = 0, name: str = "the prompt") -> list[int]:
    """Check a prompt.

    Args:
        ids: Token ids [P].
        limits: The engine or session that is to read them.
        num_cached: How many leading ids have their rows in the KV caches already.
        name: The name of `ids` in messages.

    Returns:
        The ids [P] as a list.

    Raises:
        UsageError: See `token_ids`; or there are none, more than S, or not more than `num_cached`.
        ModelError: An id is not below V.
    """
    numbers = token_ids(ids, name)
    if not numbers:
        raise UsageError(f"{name} is empty: give one token id or more")
    if len(numbers) > limits.capacity:
        raise UsageError(
            f"{name} has {len(numbers)} tokens, the KV caches hold {limits.capacity}: shorten it, or "
            f"convert the model with a larger --max-length"
        )
    num_cached = _integer(num_cached, f"the number of cached tokens is {_shown(num_cached)}")
    if not 0 <= num_cached < len(numbers):
        raise UsageError(
            f"{num_cached} of {len(numbers)} tokens are cached: at least the last one must be read"
        )
    if (highest := max(numbers)) >= limits.vocab_size:
        raise ModelError(_too_large(name, highest, limits))
    return numbers


def check_token(token: Any, position: Any, limits: Limits) -> int:
    """Check one token of a decode step.

    Args:
        token: Its id.
        position: Its position.
        limits: The engine or session that is to read it.

    Returns:
        The id.

    Raises:
        UsageError: The id or the position is negative or no integer, or the position is not below S.
        ModelError: The id is not below V.
    """
    if type(token) is int and type(position) is int:  # almost always: no call, no message
        if 0 <= token < limits.vocab_size and 0 <= position < limits.capacity:
            return token
    else:
        token = _integer(token, f"the token id is {_shown(token)}")
        position = _integer(position, f"the position is {_shown(position)}")
    if token < 0:
        raise UsageError(f"the token id is {token}: no token id is below 0")
    if not 0 <= position < limits.capacity:
        raise UsageError(
            f"position {position} is outside of the KV caches, which hold 0 to {limits.capacity - 1}: "
            f"convert the model with a larger --max-length"
        )
    if token >= limits.vocab_size:
        raise ModelError(_too_large("the text", token, limits))
    return token


def _too_large(name: str, token: int, limits: Limits) -> str:
    return (
        f"{name} has the token id {token}, the model has ids below {limits.vocab_size}: use the tokenizer of "
        f"the model's checkpoint"
    )


def _integer(number: Any, problem: str) -> int:
    """The number as an int. A bool, a float and text are refused."""
    if not isinstance(number, bool):
        try:
            return operator.index(number)
        except TypeError:
            pass
    raise UsageError(f"{problem}, which is not an integer")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
