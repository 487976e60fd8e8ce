"""Scoring: the log-probabilities that a model gives the tokens of an existing text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from o2o.errors import UsageError
from runtime_py.engines.engine import EngineSession
from runtime_py.engines.token_ids import check_prompt, token_ids
from runtime_py.generation.generate import Token
from runtime_py.generation.log_probabilities import log_softmax, top_tokens
from runtime_py.generation.setting_types import check
from runtime_py.text.detokenizer import Detokenizer

BLOCK = 1 << 21
"""Logits that are converted to float64 log-probabilities at a time: 16 MB."""


def score_tokens(
    session: EngineSession, ids: Sequence[int], detokenizer: Detokenizer, top: int = 0
) -> Iterator[Token]:
    """Score a text.

    Args:
        session: A session of an engine; its text is lost.
        ids: Token ids [P], 1 <= P <= S + 1.
        detokenizer: A new detokenizer.
        top: How many of the most likely tokens to return for each place.

    Yields:
        The tokens of the text. The first one has no log-probability: nothing predicts it.

    Raises:
        UsageError: There are no ids or more than S + 1, one of them is no token id, or `top` is negative.
        ModelError: An id is not below V, or logits are not finite.
    """
    check("log_probabilities", top)
    ids = check_text(ids, session)
    pieces = [detokenizer.push(token) for token in ids]
    pieces[-1] += detokenizer.flush()
    yield Token(ids[0], pieces[0])
    log_probabilities = log_probability_rows(session, ids)
    for token, piece, row in zip(ids[1:], pieces[1:], log_probabilities, strict=True):
        yield Token(token, piece, None, float(row[token]), top_tokens(row, top))


def check_text(ids: Any, session: EngineSession) -> list[int]:
    """Check a text that is to be scored.

    Args:
        ids: Token ids [P].
        session: The session that is to read them.

    Returns:
        The ids as a list.

    Raises:
        UsageError: There are no ids or more than S + 1, or one of them is no token id.
        ModelError: An id is not below V.
    """
    numbers = token_ids(ids, "the text")
    if len(numbers) > session.capacity + 1:
        raise UsageError(
            f"the text has {len(numbers)} tokens, and {session.capacity + 1} can be scored: split it, or "
            f"convert the model with a larger --max-length"
        )
    check_prompt(numbers[1:] or numbers, session, name="the text")  # the last one is not read
    check_prompt(numbers[:1], session, name="the text")
    return numbers


def log_probability_rows(session: EngineSession, ids: Sequence[int]) -> Iterator[np.ndarray]:
    """Compute the distribution of each token of a text but the first.

    Args:
        session: A session of an engine; its text is lost.
        ids: Token ids [P], P <= S + 1.

    Yields:
        P - 1 times log p [V] in nats, float64.
    """
    for block in blocks(session.logits(ids[:-1])) if len(ids) > 1 else ():
        yield from log_softmax(block)


def blocks(parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Divide logits into blocks that are small in float64.

    Args:
        parts: Logits [T, V] of consecutive parts of a text.

    Yields:
        The same rows in order, at most `BLOCK` logits at a time, and at least one row.
    """
    for part in parts:
        rows = max(1, BLOCK // part.shape[1])
        yield from (part[start : start + rows] for start in range(0, len(part), rows))
