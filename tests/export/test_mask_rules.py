"""The rule of each layer's mask is read from the values of transformers' mask functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)

from export.mask_rules import CAUSAL, MaskRule, rule_of
from export.model import LanguageModel
from export.modules import ConcatenatedCacheModule, PrefillModule, StaticCacheModule
from o2o.errors import ModelError
from tests.checkpoints import GROUPED

WINDOW = GROUPED | {"num_hidden_layers": 3, "sliding_window": 5, "vocab_size": 97}
ALTERNATING = WINDOW | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
CAPACITY = 24


@pytest.mark.parametrize(
    ("function", "size", "rule"),
    [
        (causal_mask_function, None, CAUSAL),
        (sliding_window_causal_mask_function(5), 5, MaskRule(window=5)),
        (sliding_window_causal_mask_function(5), None, MaskRule(window=5)),
        (sliding_window_causal_mask_function(5), 4, MaskRule(window=5)),  # values count, not names
        (chunked_causal_mask_function(5, torch.zeros(1, dtype=torch.int64)), 5, MaskRule(chunk=5)),
    ],
)
def test_a_rule_is_what_the_function_computes(function: Any, size: int | None, rule: MaskRule) -> None:
    assert rule_of(function, size, 64) == rule


@pytest.mark.parametrize(
    "function",
    [
        bidirectional_mask_function,
        lambda batch, head, q, k: (k <= q) & ((k > q - 5) | (k < 2)),  # the first keys stay visible
        lambda batch, head, q, k: (k <= q) & (k > q - 5) & (q - k != 3),
        lambda batch, head, q, k: (k <= q) & (k >= (q + 1) // 5 * 5),  # chunks that begin elsewhere
    ],
)
def test_another_mask_is_refused(function: Any) -> None:
    with pytest.raises(ModelError, match="neither causal nor a sliding window nor chunks"):
        rule_of(function, 5, 64)


def test_a_mask_that_needs_more_than_positions() -> None:
    def fails(batch: Any, head: Any, q: Any, k: Any) -> Any:
        raise IndexError("no such row")

    with pytest.raises(ModelError, match="cannot be computed from positions alone"):
        rule_of(fails, 5, 64)


def test_what_a_rule_hides() -> None:
    positions = torch.arange(12)
    for rule, function in (
        (MaskRule(window=5), sliding_window_causal_mask_function(5)),
        (MaskRule(chunk=5), chunked_causal_mask_function(5, torch.zeros(1, dtype=torch.int64))),
    ):
        visible = (positions <= positions[:, None]) & ~rule.hidden(positions[:, None], positions)
        zero = torch.tensor(0)
        assert torch.equal(visible, function(zero, zero, positions[:, None], positions[None]))
    assert not MaskRule(window=5).limits(5)
    assert MaskRule(window=5).limits(6)
    assert not CAUSAL.limits(1000)


def structure(model_type: str, implementation: str, **fields: Any) -> LanguageModel:
    return LanguageModel(AutoConfig.for_model(model_type, **fields), implementation)


@pytest.mark.parametrize("implementation", ["grouped", "eager"])
@pytest.mark.parametrize(
    ("model_type", "fields", "windows"),
    [
        ("mistral", WINDOW, [5, 5, 5]),
        ("gemma2", ALTERNATING | {"head_dim": 8}, [5, None, 5]),
        ("qwen2", WINDOW | {"use_sliding_window": True, "max_window_layers": 1}, [None, 5, 5]),
        ("qwen2", WINDOW | {"use_sliding_window": False}, [None, None, None]),
        ("llama", WINDOW, [None, None, None]),  # the field is there, and the code does not read it
    ],
)
def test_the_layers_with_a_window(
    model_type: str, fields: dict[str, Any], windows: list[int | None], implementation: str
) -> None:
    model = structure(model_type, implementation, **fields)
    assert [rule.window for rule in model.mask_rules] == windows
    roles = PrefillModule(model, 4).outputs
    assert [roles[f"present_key_{layer}"].window for layer in range(3)] == windows


CHUNKED = {
    **GROUPED,
    "num_hidden_layers": 4,
    "vocab_size": 97,
    "attention_chunk_size": 5,
    "moe_layers": [],
    "intermediate_size_mlp": 48,
    "num_local_experts": 0,
    "head_dim": 8,
}


@pytest.mark.parametrize("implementation", ["grouped", "flash", "eager"])
@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("mistral", WINDOW),
        ("gemma3_text", ALTERNATING | {"head_dim": 8}),
        ("llama4_text", CHUNKED),
    ],
)
def test_logits_beyond_the_window_are_those_of_transformers(
    model_type: str, fields: dict[str, Any], implementation: str
) -> None:
    """A prefill, then chunks and single tokens, over more than four windows."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **fields)
    reference = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model = structure(model_type, implementation, **fields)
    weights = [dict(reference.named_parameters(remove_duplicate=False))[name] for name in model.parameters]
    ids = torch.randint(1, 97, (1, CAPACITY))
    with torch.no_grad():
        expected = reference(ids).logits
        logits, *rows = PrefillModule(model, 8)(ids[:, :8], weights)
        torch.testing.assert_close(logits, expected[:, :8], rtol=1e-4, atol=1e-5)
        caches = [torch.nn.functional.pad(row, (0, 0, 0, CAPACITY - 8)) for row in rows]
        if implementation == "eager":
            decode = ConcatenatedCacheModule(model, CAPACITY)
            logits = decode(ids[:, 8:9], torch.tensor([8]), caches, weights)
            torch.testing.assert_close(logits, expected[:, 8:9], rtol=1e-4, atol=1e-5)
        start = 8
        for tokens in (7, 6, 1, 1, 1):
            module = StaticCacheModule(model, "decode", tokens, CAPACITY)
            logits, *caches = module(ids[:, start : start + tokens], torch.tensor([start]), caches, weights)
            torch.testing.assert_close(logits, expected[:, start : start + tokens], rtol=1e-4, atol=1e-5)
            start += tokens
