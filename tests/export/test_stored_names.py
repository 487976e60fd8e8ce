"""Stored names become module names as `from_pretrained` of transformers does it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from export.stored_names import StoredNames, match_names

TINY = {"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


def structure(model_type: str, **fields: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **TINY | fields))


def names_of(model: Any, stored: list[str]) -> StoredNames:
    names = match_names(model, stored)
    assert set(names.of_parameters) <= set(model.state_dict())
    return names


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gptj", "falcon", "bloom", "opt"])
def test_a_checkpoint_of_the_base_model(model_type: str) -> None:
    model = structure(model_type)
    prefix = f"{model.base_model_prefix}."
    names = names_of(model, [name.removeprefix(prefix) for name in model.state_dict()])
    assert {name: stored.removeprefix(prefix) for name, stored in names.of_parameters.items()} == {
        name: name.removeprefix(prefix) for name in model.state_dict()
    }
    assert names.unexpected == names.ignored == []


def test_renamed_modules() -> None:
    model = structure("gpt_neox", intermediate_size=8)
    stored = [name.replace("lm_head", "embed_out") for name in model.state_dict()]
    assert names_of(model, stored).of_parameters["lm_head.weight"] == "embed_out.weight"


@pytest.mark.parametrize(
    ("model_type", "name", "ignored"),
    [
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq", True),
        ("gpt2", "h.0.attn.bias", True),
        ("gpt2", "transformer.h.0.attn.masked_bias", False),  # transformers warns
        ("gptj", "transformer.h.0.attn.masked_bias", False),
        ("gpt_neox", "gpt_neox.layers.0.attention.masked_bias", True),
    ],
)
def test_tensors_that_no_parameter_takes(model_type: str, name: str, ignored: bool) -> None:
    names = match_names(structure(model_type), [name])
    assert (names.ignored, names.unexpected) == (([name], []) if ignored else ([], [name]))
    assert not names.of_parameters


def test_tensors_that_transformers_joins() -> None:
    model = structure("mixtral", intermediate_size=8, num_key_value_heads=2, num_local_experts=2)
    stored = "model.layers.0.block_sparse_moe.experts.0.w1.weight"
    ((target, (name, operations)),) = match_names(model, [stored]).converted.items()
    assert target.endswith("experts.gate_up_proj")
    assert (name, operations) == (stored, "MergeModulelist, Concatenate")
