"""GPT-Neo's attention is `o2o.attention`, with the window of its local layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from export.model import LanguageModel
from export.modules import StaticCacheModule
from o2o.errors import UsageError

FIELDS: dict[str, Any] = {
    "vocab_size": 97,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_size": 16,
    "window_size": 5,
    "attention_types": [[["global", "local"], 1]],
    "max_position_embeddings": 64,
}


def test_the_layers_with_a_window() -> None:
    """Its masks do not have the window."""
    config = AutoConfig.for_model("gpt_neo", **FIELDS)
    model = LanguageModel(config, "grouped")
    model.check_length(64)
    assert [rule.window for rule in model.mask_rules] == [None, 5]
    eager = LanguageModel(config, "eager")
    eager.check_length(5)
    with pytest.raises(UsageError, match="does not show which layers have its window of 5 tokens"):
        eager.check_length(6)


@pytest.mark.parametrize("implementation", ["grouped", "flash:2,3"])
def test_logits_beyond_the_window_are_those_of_transformers(implementation: str) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt_neo", **FIELDS)
    reference = AutoModelForCausalLM.from_config(config).eval()
    model = LanguageModel(config, implementation)
    parameters = dict(reference.named_parameters(remove_duplicate=False))
    weights = [parameters[name] for name in model.parameters]
    ids = torch.randint(1, 97, (1, 24))
    caches = [torch.zeros(1, heads, 24, size) for heads, size in model.cache_shapes]
    with torch.no_grad():
        expected = reference(ids).logits
        start = 0
        for tokens in (9, 8, 1, 1):
            module = StaticCacheModule(model, "decode", tokens, 24)
            logits, *caches = module(ids[:, start : start + tokens], torch.tensor([start]), caches, weights)
            torch.testing.assert_close(logits, expected[:, start : start + tokens], rtol=1e-4, atol=1e-5)
            start += tokens
