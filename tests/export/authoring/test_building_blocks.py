"""Building blocks: the same numbers as transformers, whole or by pieces, as operators and as plain torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from export.attention import implementation_of, queries_at
from export.authoring.building_blocks import Decoder, Positions, attend, rotate
from export.authoring.config import ModelConfig
from export.authoring.model_file import load
from o2o.operators.masks import LOWEST
from tests.export.authoring.conftest import BLOCKS

SIZES = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 64}
NAMES = {
    "embedding": "model.embed_tokens",
    "attention_norm": "input_layernorm",
    "feed_forward_norm": "post_attention_layernorm",
    "attention": "self_attn",
    "feed_forward": "mlp",
}


def causal(T: int, S: int) -> torch.Tensor:
    return torch.full((T, S), LOWEST).triu(S - T + 1)[None, None]


@torch.no_grad()
def run(model: torch.nn.Module, ids: torch.Tensor, pieces: list[int]) -> torch.Tensor:
    """The logits of a text that is read in pieces."""
    cache, done, logits = DynamicCache(), 0, []
    for count in pieces:
        positions = torch.arange(done, done + count)[None]
        mask = causal(count, done + count)
        logits.append(model(ids[:, done : done + count], positions, mask, cache))
        done += count
    return torch.cat(logits, 1)


def test_as_llama() -> None:
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(LlamaConfig(**SIZES, rms_norm_eps=1e-6)).eval()
    ours = Decoder(ModelConfig(**SIZES)).eval()
    state = theirs.state_dict()
    renamed = {}
    for name in ours.state_dict():
        parts = [NAMES.get(part, part) for part in name.split(".")]
        other = ".".join(parts)
        renamed[name] = state[other if other in state else f"model.{other}"]
    ours.load_state_dict(renamed)
    ids = torch.randint(40, (1, 9))
    with torch.no_grad():
        expected = theirs(ids).logits
    for pieces in ([9], [4, 1, 4]):
        torch.testing.assert_close(run(ours, ids, pieces), expected, atol=1e-5, rtol=1e-5)


def test_interleaved_rotation_is_the_same_in_another_order() -> None:
    x = torch.randn(1, 2, 5, 8)
    positions = Positions.of(torch.arange(5)[None], 8, 10_000.0)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    expected = rotate(x[..., order], positions)
    torch.testing.assert_close(rotate(x, positions, interleaved=True)[..., order], expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.3, "softcap": 5.0},
        {"window": 3},
        {"window": 3, "sinks": torch.tensor([0.5, -1.0, 2.0, 0.0])},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
@pytest.mark.parametrize("tokens", [1, 4, 7])
def test_attention_as_an_operator_is_that_of_torch(options: dict, tokens: int) -> None:
    S = 7
    query, (key, value) = torch.randn(1, 4, tokens, 6), torch.randn(2, 1, 2, S, 6)
    positions = Positions.of(torch.arange(S - tokens, S)[None], 6, 10_000.0)
    mask = causal(tokens, S)
    module = torch.nn.Module()
    expected = attend(module, query, key, value, mask, positions, **options)
    for name in ("grouped", "blocked"):
        with implementation_of(name), queries_at(positions.ids[0, :1], mask):
            actual = attend(module, query, key, value, mask, positions, **options)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_layers_that_differ(tmp_path: Path) -> None:
    """Windows, heads and widths by layer: a text read by pieces has the logits of the whole text."""
    path = tmp_path / "mine.py"
    path.write_text(BLOCKS)
    source = load(path)
    torch.manual_seed(0)
    model = source.build(source.config({})).eval()
    ids = torch.randint(40, (1, 14))
    whole = run(model, ids, [14])
    torch.testing.assert_close(run(model, ids, [3, 1, 8, 1, 1]), whole, atol=1e-5, rtol=1e-5)
    other = ids.clone()
    other[0, 0] += 1
    last = run(model, other % 40, [14])[0, -1]
    assert not torch.allclose(
        last, whole[0, -1], atol=1e-6
    )  # the layer without a window sees the first token
