"""The logits processors of one text, in the order of transformers' `generate`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from o2o.errors import UsageError
from runtime_py.generation.logits_processors import LogitsProcessor, constraints, penalties, truncation
from runtime_py.generation.sampling import Sampling


def processor_chain(
    sampling: Sampling,
    prompt: Sequence[int],
    *,
    vocab_size: int,
    eos: Iterable[int] = (),
    min_length: int = 0,
    max_length: int | None = None,
    custom: Sequence[LogitsProcessor] = (),
) -> list[LogitsProcessor]:
    """Create the logits processors of a text.

    Args:
        sampling: The settings, checked by `check_ids`.
        prompt: Token ids [P].
        vocab_size: V.
        eos: The end-of-sequence ids.
        min_length: The smallest number of ids, prompt included.
        max_length: The largest number of ids, prompt included; None for no limit.
        custom: Processors of the caller: after all others that do not depend on random choice.

    Returns:
        The processors. Settings without an effect have none.

    Raises:
        UsageError: `custom` is no list of functions. At a step: one of them returned something else than
            logits.
    """
    custom = _checked(custom)
    eos = _below(eos, vocab_size)
    chain = [constraints.min_length(min_length, eos)] if eos and min_length > len(prompt) else []
    if sampling.greedy:
        return [*chain, *custom]
    chain = [
        *_penalties(sampling, prompt),
        *_ngrams(sampling, prompt, eos),
        *chain,
        *_forced(sampling, prompt, vocab_size, eos, max_length),
        *_biases(sampling, prompt),
        *custom,
    ]
    if sampling.draws:
        chain += _truncation(sampling)
    if sampling.renormalize_logits:
        chain.append(constraints.renormalize_logits())
    return chain


def _penalties(sampling: Sampling, prompt: Sequence[int]) -> Iterator[LogitsProcessor]:
    if sampling.sequence_bias:
        yield penalties.sequence_bias(sampling.sequence_bias)
    if sampling.encoder_repetition_penalty not in (None, 1):
        yield penalties.encoder_repetition_penalty(sampling.encoder_repetition_penalty, prompt)
    if sampling.repetition_penalty not in (None, 1):
        yield penalties.repetition_penalty(sampling.repetition_penalty)


def _ngrams(sampling: Sampling, prompt: Sequence[int], eos: Sequence[int]) -> Iterator[LogitsProcessor]:
    if sampling.no_repeat_ngram_size:
        yield constraints.no_repeat_ngrams(sampling.no_repeat_ngram_size)
    if sampling.encoder_no_repeat_ngram_size:
        yield constraints.no_repeat_ngrams(sampling.encoder_no_repeat_ngram_size, prompt)
    if sampling.bad_words_ids:
        yield constraints.bad_words(sampling.bad_words_ids, eos)


def _forced(
    sampling: Sampling, prompt: Sequence[int], vocab_size: int, eos: Sequence[int], max_length: int | None
) -> Iterator[LogitsProcessor]:
    length = len(prompt)
    if sampling.forced_bos_token_id is not None and length == 1:
        yield constraints.forced_tokens([sampling.forced_bos_token_id], 1)
    if (forced := _ids(sampling.forced_eos_token_id)) and max_length is not None:
        yield constraints.forced_tokens(forced, max_length - 1)
    if sampling.remove_invalid_values:
        yield constraints.remove_invalid_values()
    if sampling.exponential_decay_length_penalty and eos:
        start, factor = sampling.exponential_decay_length_penalty
        yield penalties.exponential_decay_length_penalty(start, factor, eos, length)
    if sampling.suppress_tokens:
        yield constraints.suppress_tokens(_below(sampling.suppress_tokens, vocab_size))
    if sampling.begin_suppress_tokens:
        forced_first = length == 1 and sampling.forced_bos_token_id is not None
        tokens = _below(sampling.begin_suppress_tokens, vocab_size)
        yield constraints.begin_suppress_tokens(tokens, length + forced_first)


def _biases(sampling: Sampling, prompt: Sequence[int]) -> Iterator[LogitsProcessor]:
    if sampling.logit_bias:
        yield penalties.sequence_bias({(token,): bias for token, bias in sampling.logit_bias.items()})
    if sampling.frequency_penalty or sampling.presence_penalty:
        yield penalties.frequency_and_presence_penalty(
            sampling.frequency_penalty or 0, sampling.presence_penalty or 0, len(prompt)
        )


def _truncation(sampling: Sampling) -> Iterator[LogitsProcessor]:
    if sampling.temperature not in (None, 1):
        yield truncation.temperature(sampling.temperature)
    if sampling.top_h is not None:
        yield truncation.top_h(sampling.top_h)
    if sampling.top_k:
        yield truncation.top_k(sampling.top_k)
    if sampling.top_p is not None and sampling.top_p < 1:
        yield truncation.top_p(sampling.top_p)
    if sampling.min_p:
        yield truncation.min_p(sampling.min_p)
    if sampling.typical_p is not None and sampling.typical_p < 1:
        yield truncation.typical_p(sampling.typical_p)
    if sampling.epsilon_cutoff and sampling.epsilon_cutoff < 1:
        yield truncation.epsilon_cutoff(sampling.epsilon_cutoff)
    if sampling.eta_cutoff and sampling.eta_cutoff < 1:
        yield truncation.eta_cutoff(sampling.eta_cutoff)


def check_ids(sampling: Sampling, vocab_size: int) -> None:
    """Check the token ids of settings that need a token of the model.

    Args:
        sampling: The settings.
        vocab_size: V.

    Raises:
        UsageError: An id is not below V.
    """
    ids_by_name: dict[str, Iterable[int]] = {
        "logit_bias": sampling.logit_bias or (),
        "sequence_bias": (token for ids in sampling.sequence_bias or () for token in ids),
        "bad_words_ids": (token for ids in sampling.bad_words_ids or () for token in ids),
        "forced_bos_token_id": _ids(sampling.forced_bos_token_id),
        "forced_eos_token_id": _ids(sampling.forced_eos_token_id),
    }
    for name, ids in ids_by_name.items():
        if (highest := max(ids, default=0)) >= vocab_size:
            raise UsageError(f"{name} has the token id {highest}, the model has ids below {vocab_size}")


def _ids(value: int | Sequence[int] | None) -> Sequence[int]:
    if value is None:
        return ()
    return value if isinstance(value, Sequence) else (value,)


def _below(ids: Iterable[int], vocab_size: int) -> list[int]:
    """The ids that a token has."""
    return [token for token in ids if 0 <= token < vocab_size]


def _checked(custom: Sequence[LogitsProcessor]) -> list[LogitsProcessor]:
    """Raises UsageError for anything but a list of functions."""
    if not isinstance(custom, Sequence) or not all(map(callable, custom)):
        raise UsageError("logits_processors must be a list of functions of the ids and the logits")
    return [_with_checked_result(process) for process in custom]


def _with_checked_result(process: LogitsProcessor) -> LogitsProcessor:
    """Protect the ids and logits of the session, and check the result."""

    def checked(ids: Sequence[int], logits: np.ndarray) -> np.ndarray:
        processed = process([*ids], logits.copy())
        if not isinstance(processed, np.ndarray) or processed.shape != logits.shape:
            raise UsageError(
                f"a logits processor returned {_shape(processed)}: it must return an array of the logits' "
                f"shape {list(logits.shape)}"
            )
        if processed.dtype.kind not in "fiu":
            raise UsageError(f"a logits processor returned {processed.dtype} numbers: it must return floats")
        if np.isnan(processed).any():
            raise UsageError("a logits processor returned NaN: give -inf to a forbidden token")
        return processed

    return checked


def _shape(value: object) -> str:
    return f"an array of shape {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
