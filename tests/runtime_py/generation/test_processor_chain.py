"""The logits processors of a text, compared with those of `generate` for the same generation_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from runtime_py.generation.generation_config import read_generation_config
from runtime_py.generation.processor_chain import processor_chain
from runtime_py.generation.sampler import sampler
from runtime_py.generation.sampling import Sampling
from tests.tolerances import assert_close

V = 80
EOS = [2, 5]

token = st.integers(0, 7)
ids = st.lists(token, min_size=1, max_size=3)
positive = st.floats(0.3, 3)
probability = st.floats(0.05, 0.95) | st.just(1.0)
SETTINGS: dict[str, st.SearchStrategy[Any]] = {
    "do_sample": st.booleans(),
    "temperature": positive,
    "top_k": st.integers(0, V),
    "top_p": probability,
    "min_p": probability,
    "typical_p": probability,
    "top_h": probability,
    "epsilon_cutoff": st.floats(0, 0.1),
    "eta_cutoff": st.floats(0, 0.1),
    "repetition_penalty": positive,
    "encoder_repetition_penalty": positive,
    "no_repeat_ngram_size": st.integers(0, 3),
    "encoder_no_repeat_ngram_size": st.integers(0, 3),
    "bad_words_ids": st.lists(ids, min_size=1, max_size=3).map(lambda words: [*words, [V - 1]]),
    "sequence_bias": st.lists(st.tuples(ids, st.floats(-5, 5)).map(list), min_size=1, max_size=3),
    "suppress_tokens": st.lists(st.integers(20, V + 5), min_size=1, max_size=3),
    "begin_suppress_tokens": st.lists(token, min_size=1, max_size=3),
    "forced_bos_token_id": st.integers(8, 19),
    "forced_eos_token_id": st.sampled_from([2, EOS]),
    "min_length": st.integers(0, 12),
    "min_new_tokens": st.integers(0, 9),
    "max_length": st.integers(8, 12),
    "max_new_tokens": st.integers(1, 9),
    "exponential_decay_length_penalty": st.tuples(st.integers(0, 5), st.floats(1, 1.5)).map(list),
    "remove_invalid_values": st.booleans(),
    "renormalize_logits": st.booleans(),
}


CALLER = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "no_repeat_ngram_size")
"""Settings that flags of `runtime_py.run` replace."""


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=V, **size))


@settings(max_examples=150, deadline=None)
@given(
    file=st.fixed_dictionaries({}, optional=SETTINGS),
    caller=st.fixed_dictionaries({}, optional={name: SETTINGS[name] for name in CALLER}),
    prompt=st.lists(token, min_size=1, max_size=4),
    new=st.lists(token, max_size=8),
    seed=st.integers(0, 999),
)
def test_the_scores_are_those_of_generate(
    model: LlamaForCausalLM,
    tmp_path_factory: pytest.TempPathFactory,
    file: dict[str, Any],
    caller: dict[str, Any],
    prompt: list[int],
    new: list[int],
    seed: int,
) -> None:
    """Any settings, whether they have an effect or not, and of a caller over them, at any step of a text."""
    # Of the smallest number, which replaces -inf, transformers computes NaN.
    assume(not file.get("remove_invalid_values") or "exponential_decay_length_penalty" not in file)
    if not file.get("do_sample"):
        caller = {}  # sampling options turn sampling on here, but not in transformers
    folder = tmp_path_factory.getbasetemp() / "random-settings"
    folder.mkdir(exist_ok=True)
    (folder / "generation_config.json").write_text(json.dumps(file | {"eos_token_id": EOS}))
    logits = np.random.default_rng(seed).normal(0, 2, V).astype(np.float32)
    theirs = scores_of_generate(model, folder, prompt, new, logits, **caller)
    ours = logits
    with np.errstate(over="ignore", invalid="ignore"):
        for process in chain(folder, prompt, Sampling(**caller)):
            ours = process(prompt + new, ours)
    removed = theirs < -1e30  # remove_invalid_values replaces -inf, and a division may restore it
    np.testing.assert_array_equal(ours < -1e30, removed)
    assert_close(ours[~removed], theirs[~removed])


@pytest.mark.parametrize(
    "file",
    [
        {},
        {"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.3},
        {"top_k": 0, "min_p": 0.02, "suppress_tokens": [0, 1, 2]},
        {"top_k": 0, "typical_p": 0.7, "eta_cutoff": 0.01},
        {"top_k": 20, "temperature": 2.0, "no_repeat_ngram_size": 1, "min_new_tokens": 5},
    ],
)
def test_tokens_are_drawn_as_often_as_generate_draws_them(
    model: LlamaForCausalLM, tmp_path: Path, file: dict[str, Any]
) -> None:
    """Pearson's statistic of 5,000 draws with a fixed seed."""
    file = file | {"do_sample": True, "eos_token_id": EOS}
    (tmp_path / "generation_config.json").write_text(json.dumps(file))
    logits = np.random.default_rng(3).normal(0, 1, V).astype(np.float32)
    scores = scores_of_generate(model, tmp_path, [0, 1], [4], logits)
    probabilities = torch.from_numpy(scores).double().softmax(-1).numpy()
    sampling = Sampling(seed=1).over(read_generation_config(tmp_path).sampling)
    choose = sampler(sampling, chain(tmp_path, [0, 1]))
    counts = np.bincount([choose([0, 1, 4], logits) for _ in range(5000)], minlength=V)
    assert counts[probabilities == 0].sum() == 0
    often = np.flatnonzero(probabilities * 5000 >= 5)
    expected = probabilities[often] * 5000
    statistic = float(((counts[often] - expected) ** 2 / expected).sum())
    assert len(often) > 3
    assert statistic < len(often) + 4 * np.sqrt(2 * len(often)) + 8


def scores_of_generate(
    model: LlamaForCausalLM,
    folder: Path,
    prompt: list[int],
    new: list[int],
    logits: np.ndarray,
    **caller: Any,
) -> np.ndarray:
    """The processed scores, by the steps of `GenerationMixin.generate`."""
    logging.set_verbosity_error()
    model.generation_config = GenerationConfig.from_pretrained(folder)
    has_default = {
        f"has_default_{name}": getattr(model.generation_config, name) is None
        for name in ("max_length", "min_length")
    }
    inputs = torch.tensor([prompt])
    config, _ = model._prepare_generation_config(None, **caller)
    model._prepare_special_tokens(config, True, device=inputs.device, batch_size=1)
    config = model._prepare_generated_length(
        generation_config=config,
        **has_default,
        model_input_name="input_ids",
        input_ids_length=len(prompt),
        inputs_tensor=inputs,
    )
    processors = model._get_logits_processor(
        generation_config=config, input_ids_seq_length=len(prompt), encoder_input_ids=inputs, device="cpu"
    )
    scores: torch.Tensor = processors(torch.tensor([prompt + new]), torch.from_numpy(logits.copy())[None])
    return scores[0].numpy()


def chain(folder: Path, prompt: list[int], sampling: Sampling | None = None) -> list[Any]:
    config = read_generation_config(folder)
    limit = config.max_new_tokens
    return processor_chain(
        (sampling or Sampling()).over(config.sampling),
        prompt,
        vocab_size=V,
        eos=config.eos_token_id,
        min_length=config.smallest_length(len(prompt)),
        # 20 new tokens: the limit of transformers where there is no other
        max_length=len(prompt) + limit if limit is not None else config.max_length or len(prompt) + 20,
    )


def test_greedy_has_no_processors(tmp_path: Path) -> None:
    file = {"repetition_penalty": 2.0, "suppress_tokens": [1], "do_sample": True, "min_length": 1}
    (tmp_path / "generation_config.json").write_text(json.dumps(file))
    assert chain(tmp_path, [1, 2], Sampling(greedy=True)) == []
    assert len(chain(tmp_path, [1, 2])) == 3, "top_k is 50"


def test_settings_without_an_effect_have_no_processor() -> None:
    off = Sampling(
        do_sample=True,
        temperature=1,
        top_k=0,
        top_p=1,
        min_p=0,
        typical_p=1,
        epsilon_cutoff=0,
        eta_cutoff=0,
        repetition_penalty=1,
        frequency_penalty=0,
        presence_penalty=0,
        no_repeat_ngram_size=0,
        logit_bias={},
    )
    assert processor_chain(off, [1], vocab_size=V, eos=[2]) == []


def test_options_of_the_caller_come_before_the_temperature() -> None:
    """Logit biases, then penalties, then the caller's functions."""
    sampling = Sampling(logit_bias={1: 3.0}, presence_penalty=1.0, temperature=0.5, suppress_tokens=[0])
    processors = processor_chain(
        sampling, [3], vocab_size=4, custom=[lambda ids, logits: logits * np.float32(10)]
    )
    logits = np.zeros(4, np.float32)
    for process in processors:
        logits = process([3, 1], logits)
    np.testing.assert_array_equal(logits, [-np.inf, (3 - 1) * 10 / 0.5, 0, 0])
