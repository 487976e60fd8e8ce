"""What GGUF makes of a checkpoint, as far as that needs no llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import make_checkpoint
from bench.peers.converters.gguf_layout import gguf_name, gguf_weight, interleave_rope_rows, metadata
from bench.peers.converters.safetensors import tensors, to_float32
from o2o.weights.checkpoint import open_checkpoint

N, H, D = 3, 8, 5


def rotate(rows: np.ndarray, angles: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[N, H] with the numbers `first` and `second` of each head rotate as pairs by angles [H / 2]."""
    result = rows.copy()
    cos, sin = np.cos(angles), np.sin(angles)
    result[:, first] = rows[:, first] * cos - rows[:, second] * sin
    result[:, second] = rows[:, second] * cos + rows[:, first] * sin
    return result


def test_scores_stay_with_interleaved_rows() -> None:
    draw = np.random.default_rng(0)
    query, key = draw.normal(size=(2, N * H, D))
    x, y = draw.normal(size=(2, D))
    angles = draw.normal(size=(2, H // 2))
    halves = np.arange(H // 2), np.arange(H // 2) + H // 2  # as Hugging Face
    pairs = np.arange(0, H, 2), np.arange(1, H, 2)  # as llama.cpp
    theirs, gguf = (
        (
            rotate((q @ x).reshape(N, H), angles[0], *order)
            * rotate((k @ y).reshape(N, H), angles[1], *order)
        ).sum(1)
        for q, k, order in (
            (query, key, halves),
            (interleave_rope_rows(query, N), interleave_rope_rows(key, N), pairs),
        )
    )
    np.testing.assert_allclose(gguf, theirs)
    assert not np.allclose(interleave_rope_rows(query, N), query)


def test_the_order_within_a_head() -> None:
    rows = np.arange(8)[:, None]
    assert interleave_rope_rows(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_only_queries_and_keys_change() -> None:
    config = {"num_attention_heads": 4, "num_key_value_heads": 2}
    weight = np.arange(16)[:, None]
    layer = "model.layers.0.self_attn"
    assert (gguf_weight(f"{layer}.q_proj.weight", weight, config) == interleave_rope_rows(weight, 4)).all()
    assert (gguf_weight(f"{layer}.k_proj.weight", weight, config) == interleave_rope_rows(weight, 2)).all()
    assert gguf_weight(f"{layer}.v_proj.weight", weight, config) is weight


def test_names() -> None:
    assert gguf_name("model.layers.12.mlp.up_proj.weight") == "blk.12.ffn_up.weight"
    assert gguf_name("model.layers.0.input_layernorm.weight") == "blk.0.attn_norm.weight"
    assert gguf_name("lm_head.weight") == "output.weight"
    with pytest.raises(KeyError):
        gguf_name("model.layers.0.self_attn.q_norm.weight")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_tensor_of_a_checkpoint(tmp_path: Path, dtype: str) -> None:
    sizes = dict(zip(make_checkpoint.SIZES, (16, 24, 2, 4, 2, 4, 2100, 64), strict=True))
    make_checkpoint.make(tmp_path, sizes, tied=False, dtype=dtype, shards=1, format="safetensors", seed=0)
    if dtype != "bfloat16":
        with pytest.raises(ValueError, match="not BF16"):
            list(tensors(tmp_path))
        return
    wanted = {name: tensor.read_float32() for name, tensor in open_checkpoint(tmp_path).tensors.items()}
    bits_by_name = dict(tensors(tmp_path))
    assert bits_by_name.keys() == wanted.keys()
    for name, bits in bits_by_name.items():
        np.testing.assert_array_equal(to_float32(bits), wanted[name])
    assert len({gguf_name(name) for name in bits_by_name}) == len(bits_by_name)
    config = json.loads((tmp_path / "config.json").read_text())
    content = metadata(config)
    assert content["llama.attention.head_count_kv"] == 2
    assert content["llama.rope.dimension_count"] == 4
    assert isinstance(content["llama.rope.freq_base"], float)
