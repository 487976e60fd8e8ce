"""An adapter is merged into its base model: the weights are PEFT's formula, computed with numpy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from export.adapter import merge_adapter
from o2o.errors import ModelError
from o2o.weights.checkpoint import open_checkpoint
from tests.checkpoints import DEMO, GROUPED, write_checkpoint

RNG = np.random.default_rng(0)
Q, K, DOWN = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.self_attn.k_proj",
    "model.layers.0.mlp.down_proj",
)
SETTINGS = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}


def random(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def adapter(folder: Path, tensors: Mapping[str, np.ndarray], **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS | settings))
    named = {f"base_model.model.{name}": values for name, values in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors")
    return folder


def linear(module: str, rows: int, columns: int, rank: int = 4) -> dict[str, np.ndarray]:
    return {f"{module}.lora_A.weight": random(rank, columns), f"{module}.lora_B.weight": random(rows, rank)}


def product(tensors: Mapping[str, np.ndarray], module: str) -> np.ndarray:
    return tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "base", **DEMO)


def merged(base: Path, adapter: Path) -> dict[str, np.ndarray]:
    folder = base.parent / "merged"
    folder.mkdir()
    merge_adapter(base, adapter, folder)
    return {name: one.read_float32() for name, one in open_checkpoint(folder).tensors.items()}


def check(merged: Mapping[str, np.ndarray], base: Path, changes: Mapping[str, np.ndarray]) -> None:
    """Each weight is the base model's plus its change; the others are equal."""
    weights = load_file(base / "model.safetensors")
    assert set(merged) == set(weights)
    for name, expected in weights.items():
        if name in changes:
            np.testing.assert_allclose(
                merged[name], expected + changes[name], rtol=1e-5, atol=1e-5, err_msg=name
            )
        else:
            np.testing.assert_array_equal(merged[name], expected, name)


def test_ranks_and_scales(base: Path) -> None:
    tensors = linear(Q, 64, 64) | linear(K, 64, 64, 2) | linear(DOWN, 64, 160)
    patterns = {"rank_pattern": {"layers.1.self_attn.k_proj": 2}, "alpha_pattern": {r".*\.mlp\.down_proj": 3}}
    check(
        merged(base, adapter(base.parent / "a", tensors, **patterns)),
        base,
        {
            f"{Q}.weight": 8 / 4 * product(tensors, Q),
            f"{K}.weight": 8 / 2 * product(tensors, K),
            f"{DOWN}.weight": 3 / 4 * product(tensors, DOWN),
        },
    )


def test_rank_stabilized(base: Path) -> None:
    tensors = linear(Q, 64, 64)
    result = merged(base, adapter(base.parent / "a", tensors, use_rslora=True))
    check(result, base, {f"{Q}.weight": 8 / 4**0.5 * product(tensors, Q)})


def test_a_pickled_adapter(base: Path) -> None:
    tensors = linear(Q, 64, 64)
    folder = adapter(base.parent / "a", {})
    (folder / "adapter_model.safetensors").unlink()
    named = {f"base_model.model.{name}": torch.from_numpy(values) for name, values in tensors.items()}
    torch.save(named, folder / "adapter_model.bin")
    check(merged(base, folder), base, {f"{Q}.weight": 2 * product(tensors, Q)})


def test_matrices_that_are_stored_transposed(tmp_path: Path) -> None:
    """GPT-2's, and its names without the prefix."""
    shape = {"vocab_size": 48, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    base = write_checkpoint(tmp_path / "base", model_type="gpt2", **shape)
    tensors = linear("h.0.attn.c_attn", 48, 16)
    result = merged(base, adapter(tmp_path / "a", tensors, fan_in_fan_out=True))
    check(result, base, {"transformer.h.0.attn.c_attn.weight": 2 * product(tensors, "h.0.attn.c_attn").T})


def test_replaced_modules_and_embeddings(base: Path) -> None:
    head = random(512, 64)
    table = {
        "model.embed_tokens.lora_embedding_A": random(4, 512),
        "model.embed_tokens.lora_embedding_B": random(64, 4),
    }
    folder = adapter(base.parent / "a", {"lm_head.weight": head, **table}, modules_to_save=["lm_head"])
    weights = load_file(base / "model.safetensors")
    a, b = table.values()
    changes = {"lm_head.weight": head - weights["lm_head.weight"], "model.embed_tokens.weight": 2 * (b @ a).T}
    check(merged(base, folder), base, changes)


def test_an_embedding_that_is_tied(tmp_path: Path) -> None:
    """While it was trained, the output did not use the changed embedding."""
    base = write_checkpoint(tmp_path / "base", **GROUPED)
    table = random(131, 48)
    result = merged(
        base, adapter(tmp_path / "a", {"model.embed_tokens.weight": table}, modules_to_save=["embed_tokens"])
    )
    np.testing.assert_array_equal(result["model.embed_tokens.weight"], table)
    stored = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    np.testing.assert_array_equal(result["lm_head.weight"], stored)
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False


def test_biases(tmp_path: Path) -> None:
    fields = {name: DEMO[name] for name in DEMO if name != "head_dim"}
    base = write_checkpoint(tmp_path / "base", model_type="qwen2", **fields)
    tensors = linear(Q, 64, 64) | {f"{Q}.lora_B.bias": random(64)}
    result = merged(base, adapter(tmp_path / "a", tensors, lora_bias=True))
    check(
        result, base, {f"{Q}.weight": 2 * product(tensors, Q), f"{Q}.bias": 2 * tensors[f"{Q}.lora_B.bias"]}
    )


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"use_dora": True}, "uses DoRA, which is not merged"),
        ({"peft_type": "LOHA"}, "of the type LOHA, which is not merged"),
        ({"peft_type": "IA3"}, "of the type IA3"),
        ({"trainable_token_indices": [1]}, "uses trainable_token_indices"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "uses target_parameters"),
        ({"layer_replication": [[0, 1]]}, "uses layer_replication"),
        ({"some_new_method": True}, "uses some_new_method"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights pissa_niter_4"),
        ({"r": 8}, "its rank is 8"),
        ({"lora_alpha": None}, "lora_alpha is None, not a number"),
        ({"r": "4"}, "r is '4', not a number"),
        ({"rank_pattern": [1]}, r"rank_pattern is \[1\], not a number"),
        ({"rank_pattern": {"(": 8}}, r"the module of rank_pattern is '\('"),
        ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern of q_proj is 'x', not a number"),
    ],
)
def test_adapters_that_are_not_merged(base: Path, settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint) as error:
        merged(base, adapter(base.parent / "a", linear(Q, 64, 64), **settings))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        (
            linear(Q, 128, 128),
            r"of shape \[128, 128\], the model has \[64, 64\]: it is for another base model",
        ),
        (
            linear("model.layers.9.self_attn.q_proj", 64, 64),
            "the model does not have: is it for another base",
        ),
        ({f"{Q}.lora_A.weight": random(4, 64)}, "only one of lora_A and lora_B"),
        (linear(Q, 64, 64) | {f"{Q}.lora_magnitude_vector": random(64)}, r"lora_magnitude_vector \(DoRA\)"),
        (linear(Q, 64, 64) | {f"{Q}.lora_B.bias": random(64)}, "has none in the model"),
    ],
)
def test_adapters_that_do_not_fit(base: Path, tensors: dict[str, np.ndarray], complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        merged(base, adapter(base.parent / "a", tensors))


def test_the_tokenizer_of_the_adapter(base: Path) -> None:
    folder = adapter(base.parent / "a", linear(Q, 64, 64))
    (base / "tokenizer.json").write_text("base")
    merged(base, folder)
    assert (base.parent / "merged" / "tokenizer.json").read_text() == "base"
    (folder / "tokenizer.json").write_text("adapter")
    again = base.parent / "again"
    again.mkdir()
    lines = merge_adapter(base, folder, again)
    assert (again / "tokenizer.json").read_text() == "adapter"
    assert lines == ["a: its tokenizer takes the place of the base model's", "a: merged 1 module"]
