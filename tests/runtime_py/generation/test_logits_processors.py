"""Each logits processor, compared with the class of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as theirs

from runtime_py.generation.logits_processors import LogitsProcessor, constraints, penalties, truncation
from tests.tolerances import assert_close

V = 60
PROMPT = 3
"""The number of ids that belong to the prompt."""

Case = tuple[LogitsProcessor, theirs.LogitsProcessor]


def tensor(ids: list[int]) -> torch.Tensor:
    return torch.tensor([ids])


def shared(
    argument: st.SearchStrategy[Any], ours: Any, reference: Any
) -> st.SearchStrategy[Callable[..., Case]]:
    """A pair of processors with the same argument, as functions of the ids."""
    return argument.map(lambda value: lambda ids: (ours(value), reference(value)))


token = st.integers(0, 7)
tokens = st.lists(st.integers(0, V - 1), min_size=1, max_size=4, unique=True)
sequences = st.lists(st.lists(token, min_size=1, max_size=3), min_size=1, max_size=6)
probability = st.floats(0.01, 0.99)
PAIRS: dict[str, st.SearchStrategy[Callable[..., Case]]] = {
    "repetition_penalty": shared(
        st.floats(0.2, 3), penalties.repetition_penalty, theirs.RepetitionPenaltyLogitsProcessor
    ),
    "encoder_repetition_penalty": st.floats(0.2, 3).map(
        lambda value: (
            lambda ids: (
                penalties.encoder_repetition_penalty(value, ids[:PROMPT]),
                theirs.EncoderRepetitionPenaltyLogitsProcessor(value, tensor(ids[:PROMPT])),
            )
        )
    ),
    "sequence_bias": st.dictionaries(
        st.lists(token, min_size=1, max_size=3).map(tuple), st.floats(-9, 9) | st.just(-np.inf), min_size=1
    ).map(
        lambda biases: (
            lambda ids: (
                penalties.sequence_bias(biases),
                theirs.SequenceBiasLogitsProcessor(biases),  # type: ignore[arg-type]
            )
        )
    ),
    "exponential_decay_length_penalty": st.tuples(st.integers(0, 9), st.floats(0.5, 2), tokens).map(
        lambda value: (
            lambda ids: (
                penalties.exponential_decay_length_penalty(*value, PROMPT),
                theirs.ExponentialDecayLengthPenalty(value[:2], value[2], PROMPT),
            )
        )
    ),
    "no_repeat_ngrams": shared(
        st.integers(1, 4), constraints.no_repeat_ngrams, theirs.NoRepeatNGramLogitsProcessor
    ),
    "encoder_no_repeat_ngrams": st.integers(1, 3).map(
        lambda size: (
            lambda ids: (
                constraints.no_repeat_ngrams(size, ids[:PROMPT]),
                theirs.EncoderNoRepeatNGramLogitsProcessor(size, tensor(ids[:PROMPT])),
            )
        )
    ),
    "bad_words": st.tuples(sequences.map(lambda words: [*words, [V - 1]]), tokens).map(
        lambda value: (
            lambda ids: (
                constraints.bad_words(value[0], [7]),
                theirs.NoBadWordsLogitsProcessor(value[0], [7]),
            )
        )
    ),
    "min_length": st.tuples(st.integers(0, 20), tokens).map(
        lambda value: lambda ids: (constraints.min_length(*value), theirs.MinLengthLogitsProcessor(*value))
    ),
    "min_new_tokens": st.tuples(st.integers(0, 20), tokens).map(
        lambda value: (
            lambda ids: (
                constraints.min_length(PROMPT + value[0], value[1]),
                theirs.MinNewTokensLengthLogitsProcessor(PROMPT, *value),
            )
        )
    ),
    "suppress_tokens": shared(tokens, constraints.suppress_tokens, theirs.SuppressTokensLogitsProcessor),
    "begin_suppress_tokens": st.tuples(tokens, st.integers(1, 20)).map(
        lambda value: (
            lambda ids: (
                constraints.begin_suppress_tokens(*value),
                theirs.SuppressTokensAtBeginLogitsProcessor(*value),
            )
        )
    ),
    "forced_bos_token": shared(
        token, lambda one: constraints.forced_tokens([one], 1), theirs.ForcedBOSTokenLogitsProcessor
    ),
    "forced_eos_token": st.tuples(st.integers(1, 20), tokens).map(
        lambda value: (
            lambda ids: (
                constraints.forced_tokens(value[1], value[0] - 1),
                theirs.ForcedEOSTokenLogitsProcessor(*value),
            )
        )
    ),
    "renormalize_logits": st.just(
        lambda ids: (constraints.renormalize_logits(), theirs.LogitNormalization()),
    ),
    "temperature": shared(st.floats(0.1, 5), truncation.temperature, theirs.TemperatureLogitsWarper),
    "top_h": shared(st.floats(0.01, 0.99), truncation.top_h, theirs.TopHLogitsWarper),
    "top_k": shared(st.integers(1, V + 5), truncation.top_k, theirs.TopKLogitsWarper),
    "top_p": shared(probability | st.just(0.0), truncation.top_p, theirs.TopPLogitsWarper),
    "min_p": shared(probability, truncation.min_p, theirs.MinPLogitsWarper),
    "typical_p": shared(probability, truncation.typical_p, theirs.TypicalLogitsWarper),
    "epsilon_cutoff": shared(probability, truncation.epsilon_cutoff, theirs.EpsilonLogitsWarper),
    "eta_cutoff": shared(probability, truncation.eta_cutoff, theirs.EtaLogitsWarper),
}


@pytest.mark.parametrize("name", PAIRS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_logits_are_those_of_transformers(name: str, data: st.DataObject) -> None:
    """Random logits, of which some are -inf, and random ids with many repetitions."""
    rng = np.random.default_rng(data.draw(st.integers(0, 999), "seed"))
    logits = rng.normal(0, 2, V).astype(np.float32)
    logits[rng.permutation(V)[: data.draw(st.sampled_from([0, 3, V - 2]), "removed")]] = -np.inf
    ids = data.draw(st.lists(token, min_size=1, max_size=14), "ids")
    ours, reference = data.draw(PAIRS[name], "argument")(ids)
    before, ids_before = logits.copy(), list(ids)
    processed = ours(ids, logits)
    expected = reference(tensor(ids), torch.from_numpy(logits.copy())[None])[0].numpy()
    assert processed.dtype == np.float32
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(processed), finite)
    assert_close(processed[finite], expected[finite])
    np.testing.assert_array_equal(processed[~finite], expected[~finite])
    np.testing.assert_array_equal(logits, before)
    assert ids == ids_before


def test_invalid_values_become_finite() -> None:
    logits = np.array([1, np.nan, np.inf, -np.inf], np.float32)
    expected = theirs.InfNanRemoveLogitsProcessor()(tensor([1]), torch.from_numpy(logits)[None])[0]
    np.testing.assert_array_equal(constraints.remove_invalid_values()([1], logits), expected.numpy())


def test_generated_tokens_are_penalized_as_by_openai() -> None:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, where c counts the generated tokens."""
    process = penalties.frequency_and_presence_penalty(0.5, 2, 3)
    logits = np.arange(6, dtype=np.float32)
    np.testing.assert_array_equal(process([1, 1, 5, 4, 4, 2], logits), [0, 1, -0.5, 3, 1, 5])
    np.testing.assert_array_equal(process([1, 1, 5], logits), logits)
    np.testing.assert_array_equal(logits, np.arange(6))


def test_a_penalty_that_grows_without_bound_stays_finite() -> None:
    process = penalties.exponential_decay_length_penalty(0, 10.0, [1], 1)
    with np.errstate(over="ignore"):
        processed = process([0] * 1000, np.array([1, -2, 3], np.float32))
    assert np.isfinite(processed).all()
    assert processed.argmax() == 1


@pytest.mark.parametrize(
    "process",
    [
        truncation.top_k(2),
        truncation.top_p(0.5),
        truncation.min_p(0.5),
        truncation.typical_p(0.5),
        truncation.epsilon_cutoff(0.5),
        truncation.eta_cutoff(0.5),
        truncation.top_h(0.5),
    ],
)
def test_logits_of_which_no_token_remains_stay(process: LogitsProcessor) -> None:
    logits = np.full(V, -np.inf, np.float32)
    np.testing.assert_array_equal(process([], logits), logits)
    logits[3] = 0
    np.testing.assert_array_equal(process([], logits), logits)


def test_a_tie_at_the_last_of_the_most_likely_keeps_both() -> None:
    logits = np.array([3, 1, 2, 2], np.float32)
    np.testing.assert_array_equal(truncation.top_k(2)([], logits), [3, -np.inf, 2, 2])
