"""Logits processors that forbid or force tokens, and those that repair or normalize logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runtime_py.generation.logits_processors import LogitsProcessor
from runtime_py.generation.logits_processors.penalties import sequence_bias


def no_repeat_ngrams(size: int, source: Sequence[int] | None = None) -> LogitsProcessor:
    """Forbid tokens that would complete an n-gram a second time.

    Args:
        size: n.
        source: The ids whose n-grams may not occur again; None for the text itself, prompt included.

    Returns:
        The processor.
    """

    def process(ids: Sequence[int], logits: np.ndarray) -> np.ndarray:
        earlier = np.asarray(ids if source is None else source, np.int64)
        if len(earlier) < size or len(ids) < size - 1:
            return logits
        ngrams = np.lib.stride_tricks.sliding_window_view(earlier, size)
        beginning = np.asarray(ids[len(ids) + 1 - size :], np.int64)
        repeated = (ngrams[:, :-1] == beginning).all(axis=1)
        return _without(logits, ngrams[repeated, -1])

    return process


def bad_words(sequences: Sequence[Sequence[int]], eos: Sequence[int]) -> LogitsProcessor:
    """Forbid sequences of tokens.

    Args:
        sequences: Sequences of token ids.
        eos: The end-of-sequence ids. As in transformers, a sequence of one of them alone is permitted.

    Returns:
        The processor.
    """
    return sequence_bias({tuple(ids): -np.inf for ids in sequences if len(ids) > 1 or ids[0] not in eos})


def min_length(length: int, eos: Sequence[int]) -> LogitsProcessor:
    """Forbid the end of sequence in short texts.

    Args:
        length: The smallest number of ids, prompt included.
        eos: The end-of-sequence ids, each below V.

    Returns:
        The processor.
    """
    tokens = np.array(eos, np.int64)
    return lambda ids, logits: _without(logits, tokens) if len(ids) < length else logits


def suppress_tokens(tokens: Sequence[int]) -> LogitsProcessor:
    """Forbid tokens.

    Args:
        tokens: Token ids, each below V.

    Returns:
        The processor.
    """
    suppressed = np.array(tokens, np.int64)
    return lambda ids, logits: _without(logits, suppressed)


def begin_suppress_tokens(tokens: Sequence[int], length: int) -> LogitsProcessor:
    """Forbid tokens at one place, the beginning of the generated text.

    Args:
        tokens: Token ids, each below V.
        length: The number of ids before the place, prompt included.

    Returns:
        The processor.
    """
    suppressed = np.array(tokens, np.int64)
    return lambda ids, logits: _without(logits, suppressed) if len(ids) == length else logits


def forced_tokens(tokens: Sequence[int], length: int) -> LogitsProcessor:
    """Forbid all other tokens at one place.

    Args:
        tokens: The permitted token ids, each below V. All are equally likely.
        length: The number of ids before the place, prompt included.

    Returns:
        The processor.
    """
    permitted = np.array(tokens, np.int64)

    def process(ids: Sequence[int], logits: np.ndarray) -> np.ndarray:
        if len(ids) != length:
            return logits
        forced = np.full_like(logits, -np.inf)
        forced[permitted] = 0
        return forced

    return process


def remove_invalid_values() -> LogitsProcessor:
    """Replace NaN by 0, and infinite logits by the largest and the smallest finite number.

    Returns:
        The processor.
    """
    return lambda ids, logits: np.nan_to_num(logits, nan=0.0)


def renormalize_logits() -> LogitsProcessor:
    """Replace logits by log-probabilities.

    Returns:
        The processor.
    """

    def process(ids: Sequence[int], logits: np.ndarray) -> np.ndarray:
        shifted = logits - logits.max()
        return shifted - np.log(np.exp(shifted).sum())

    return process


def _without(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    remaining = logits.copy()
    remaining[tokens] = -np.inf
    return remaining
