"""OpenELM against a plain PyTorch model that was written from its description, in Apple's names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from export.authoring.model_file import load
from export.convert import main as convert
from export.model import LanguageModel
from export.models import built_in
from export.models.openelm import get_model_config
from o2o.errors import ModelError
from runtime_py.package import Package
from tests.pipelines import in_process

TINY: dict[str, Any] = {
    "model_type": "openelm",
    "architectures": ["OpenELMForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_openelm.OpenELMConfig"},
    "vocab_size": 131,
    "num_transformer_layers": 3,
    "model_dim": 48,
    "head_dim": 8,
    "num_gqa_groups": 2,
    "qkv_multipliers": [0.5, 1.0],
    "num_query_heads": [4, 6, 6],
    "num_kv_heads": [2, 3, 3],
    "ffn_multipliers": [0.5, 1.2, 2.0],
    "ffn_dim_divisor": 8,
    "ffn_with_glu": True,
    "activation_fn_name": "swish",
    "normalization_layer_name": "rms_norm",
    "normalize_qk_projections": True,
    "share_input_output_layers": True,
    "rope_freq_constant": 10000,
    "rope_max_length": 128,
    "max_context_length": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WIDTHS = [24, 56, 96]  # the nearest multiples of 8

PUBLISHED = {
    "270M": (
        {"num_transformer_layers": 16, "model_dim": 1280, "head_dim": 64},
        [12] * 5 + [16] * 7 + [20] * 4,
        [768, 1024, 1280, 1536, 1792, 2048, 2560, 2816, 3072, 3328, 3584, 3840, 4352, 4608, 4864, 5120],
    ),
    "450M": (
        {"num_transformer_layers": 20, "model_dim": 1536, "head_dim": 64},
        [12] * 3 + [16] * 7 + [20] * 6 + [24] * 4,
        None,
    ),
    "1.1B": (
        {"num_transformer_layers": 28, "model_dim": 2048, "head_dim": 64},
        [16] * 3 + [20] * 7 + [24] * 8 + [28] * 6 + [32] * 4,
        None,
    ),
    "3B": (
        {"num_transformer_layers": 36, "model_dim": 3072, "head_dim": 128},
        [12] * 4 + [16] * 14 + [20] * 12 + [24] * 6,
        None,
    ),
}


def reference(weights: Mapping[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """Logits [T, V] of a text, without a cache."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return (
            x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weights[f"transformer.{name}.weight"]
        )

    def rotate(x: torch.Tensor) -> torch.Tensor:
        size = x.shape[-1]
        angles = torch.arange(len(ids))[:, None] / 10000 ** (torch.arange(0, size, 2) / size)
        angles = torch.cat([angles, angles], -1)
        first, second = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()

    embedding = weights["transformer.token_embeddings.weight"]
    x = embedding[ids]
    for layer in range(TINY["num_transformer_layers"]):
        name, N, K = f"layers.{layer}", TINY["num_query_heads"][layer], TINY["num_kv_heads"][layer]
        heads = norm(x, f"{name}.attn_norm") @ weights[f"transformer.{name}.attn.qkv_proj.weight"].T
        q, k, v = heads.view(len(ids), N + 2 * K, -1).transpose(0, 1).split([N, K, K])
        q, k = rotate(norm(q, f"{name}.attn.q_norm")), rotate(norm(k, f"{name}.attn.k_norm"))
        k, v = (part.repeat_interleave(N // K, 0) for part in (k, v))
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + attended.transpose(0, 1).flatten(1) @ weights[f"transformer.{name}.attn.out_proj.weight"].T
        wide = norm(x, f"{name}.ffn_norm") @ weights[f"transformer.{name}.ffn.proj_1.weight"].T
        gate, up = wide.chunk(2, -1)
        x = x + torch.nn.functional.silu(gate) * up @ weights[f"transformer.{name}.ffn.proj_2.weight"].T
    return norm(x, "norm") @ weights.get("lm_head.weight", embedding).T


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * 1.5 / columns**0.5

    def gains(size: int) -> torch.Tensor:
        return 1 + 0.2 * torch.randn(size, generator=generator)

    D, H = TINY["model_dim"], TINY["head_dim"]
    tensors = {"token_embeddings": matrix(TINY["vocab_size"], D), "norm": gains(D)}
    for layer, (N, K, width) in enumerate(
        zip(TINY["num_query_heads"], TINY["num_kv_heads"], WIDTHS, strict=True)
    ):
        name = f"layers.{layer}"
        tensors |= {
            f"{name}.attn_norm": gains(D),
            f"{name}.attn.qkv_proj": matrix((N + 2 * K) * H, D),
            f"{name}.attn.q_norm": gains(H),
            f"{name}.attn.k_norm": gains(H),
            f"{name}.attn.out_proj": matrix(D, N * H),
            f"{name}.ffn_norm": gains(D),
            f"{name}.ffn.proj_1": matrix(2 * width, D),
            f"{name}.ffn.proj_2": matrix(D, width),
        }
    return {f"transformer.{name}.weight": tensor for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def checkpoint(weights: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("openelm")
    (folder / "config.json").write_text(json.dumps(TINY))
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("size", PUBLISHED)
def test_the_heads_of_the_published_models(size: str) -> None:
    """Computed from the multipliers, as their config.json has the lists."""
    fields, heads, widths = PUBLISHED[size]
    fields = TINY | fields | {"num_gqa_groups": 4, "ffn_dim_divisor": 256, "ffn_multipliers": [0.5, 4.0]}
    config = get_model_config({**fields, "num_query_heads": None, "num_kv_heads": None})
    assert config.num_attention_heads == heads
    assert config.num_key_value_heads == [count // 4 for count in heads]
    assert widths is None or config.intermediate_size == widths
    given = get_model_config({**fields, "num_query_heads": heads, "num_kv_heads": [n // 4 for n in heads]})
    assert given == config


def test_variants_that_were_never_published() -> None:
    with pytest.raises(ModelError, match="activation_fn_name 'gelu'"):
        get_model_config(TINY | {"activation_fn_name": "gelu"})


def test_it_belongs_to_the_package() -> None:
    file = built_in("openelm")
    assert file is not None
    assert load(file).config(TINY).num_key_value_heads == [2, 3, 3]
    assert built_in("llama") is None
    assert built_in("__init__") is None


def test_a_package(weights: dict[str, torch.Tensor], checkpoint: Path, tmp_path: Path) -> None:
    """Prompts are read in chunks; then single tokens."""
    arguments = ["--prefill-lengths", "4,8", "--max-length", "40"]
    with in_process():
        assert convert([str(checkpoint), "-o", str(tmp_path / "package"), *arguments]) == 0
    ids = np.random.default_rng(1).integers(1, 131, 40)
    expected = reference(weights, torch.from_numpy(ids)).numpy()
    for engine in ("litert", "onnx"):
        package = Package.load(tmp_path / "package" / "model.circle")
        with (
            closing(package.engine(engine=engine, threads=1, disk_cache=None)) as loaded,
            closing(loaded.open_session()) as session,
        ):
            logits = [session.prefill(ids[:21].tolist())]
            logits += [session.decode(int(ids[position]), position) for position in range(21, 40)]
        difference = np.abs(np.stack(logits) - expected[20:]).max() / expected.std()
        assert difference < 1e-4


def test_key_value_heads_differ_by_layer(checkpoint: Path) -> None:
    from export.hub import resolve

    model = LanguageModel.read(resolve(checkpoint, log=lambda line: None))
    assert model.cache_shapes == [(2, 8), (2, 8), (3, 8), (3, 8), (3, 8), (3, 8)]
