"""Frequencies that depend on the length: those of transformers for a text as long as the capacity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from export.config import CheckpointConfig
from export.model import LanguageModel
from export.modules import StaticCacheModule
from export.rotary import fix_frequencies
from tests.checkpoints import GROUPED

ORIGINAL = 16
SMALL = GROUPED | {"num_hidden_layers": 1, "vocab_size": 97, "head_dim": 8, "max_position_embeddings": 64}
FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0]}


def rotary(kind: str, **fields: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **fields}}


def longrope(**fields: Any) -> dict[str, Any]:
    own = {"original_max_position_embeddings": ORIGINAL}
    return rotary("longrope", **own, **FACTORS, **fields) | own


DYNAMIC = rotary("dynamic", factor=2.0) | {"max_position_embeddings": ORIGINAL}
PER_LAYER = {
    "layer_types": ["sliding_attention", "full_attention"],
    "num_hidden_layers": 2,
    "sliding_window": 64,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        "full_attention": longrope()["rope_parameters"],
    },
}
MODELS = {
    "phi3": ("phi3", SMALL | longrope() | {"pad_token_id": 0}),
    "phi3, partial": (
        "phi3",
        SMALL
        | {"head_dim": 16, "hidden_size": 96}
        | longrope(partial_rotary_factor=0.5)
        | {"pad_token_id": 0},
    ),
    "llama, with a factor": ("llama", SMALL | longrope(factor=4.0)),
    "llama, with a scale": ("llama", SMALL | longrope(attention_factor=1.5)),
    "gemma3, by kind of layer": ("gemma3_text", SMALL | PER_LAYER),
    "llama, dynamic": ("llama", SMALL | DYNAMIC),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("context", [ORIGINAL, ORIGINAL + 1, 40])
def test_a_text_of_the_whole_capacity(name: str, context: int) -> None:
    """The text is read in pieces, of which only the last is as long as transformers' choice needs."""
    model_type, fields = MODELS[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **fields)
    reference = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model = LanguageModel(AutoConfig.for_model(model_type, **fields), "grouped", context)
    model.check_length(context)
    parameters = dict(reference.named_parameters(remove_duplicate=False))
    weights = [parameters[name] for name in model.parameters]
    ids = torch.randint(1, 97, (1, context))
    caches = [torch.zeros(1, heads, context, size) for heads, size in model.cache_shapes]
    logits, start = [], 0
    with torch.no_grad():
        expected = reference(ids).logits[0]
        for tokens in (9, context - 10, 1):
            module = StaticCacheModule(model, "decode", tokens, context)
            part, *caches = module(ids[:, start : start + tokens], torch.tensor([start]), caches, weights)
            logits.append(part.view(tokens, -1))
            start += tokens
    torch.testing.assert_close(torch.cat(logits), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["phi3", "llama, dynamic", "gemma3, by kind of layer"])
def test_shorter_texts_keep_the_frequencies_of_the_capacity(name: str) -> None:
    model_type, fields = MODELS[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **fields)
    reference = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    ids = torch.randint(1, 97, (1, 40))
    with torch.no_grad():
        long = reference(ids).logits[:, :8]
        fix_frequencies(reference, 40)
        torch.testing.assert_close(reference(ids[:, :8]).logits, long, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "context", "choice"),
    [
        (longrope(), ORIGINAL, "longrope with short factors (up to 16 positions)"),
        (longrope(), 17, "longrope with long factors (beyond 16 positions)"),
        (
            rotary("su", original_max_position_embeddings=16),
            17,
            "longrope with long factors (beyond 16 positions)",
        ),
        (DYNAMIC, 16, "dynamic with the plain base (up to 16 positions)"),
        (DYNAMIC, 1700, "dynamic with the base of 1,700 (beyond 16 positions)"),
        (rotary("linear", factor=2.0), 17, None),
    ],
)
def test_the_choice_in_words(fields: dict[str, Any], context: int, choice: str | None) -> None:
    config = CheckpointConfig({"model_type": "llama", **SMALL, **fields}, "folder")
    assert [rope.choice(context, config.positions) for rope in config.ropes] == [choice]


def test_the_contract_has_the_choice() -> None:
    model_type, fields = MODELS["phi3"]
    model = LanguageModel(AutoConfig.for_model(model_type, **fields), "grouped", 17)
    role = StaticCacheModule(model, "decode", 1, 17).inputs["cache_position"]
    assert role.rope == "longrope with long factors (beyond 16 positions)"
