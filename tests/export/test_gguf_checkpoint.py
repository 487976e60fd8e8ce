"""GGUF files become checkpoints that compute what the model computed that they were made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from export.gguf_checkpoint import derive_gguf
from o2o.errors import ModelError
from o2o.weights.checkpoint import open_checkpoint
from o2o.weights.derived_checkpoint import FILE
from tests.gguf_files import Kind, write_gguf
from tinyllama.verification.hugging_face import load

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = SHAPE | {"num_key_value_heads": 2}
KEYS = {"context_length": 64, "block_count": 2, "embedding_length": 64, "feed_forward_length": 96}
HEADS = {"attention.head_count": 4, "attention.head_count_kv": 2}
EPS = 1e-5
RMS = KEYS | HEADS | {"attention.layer_norm_rms_epsilon": EPS}
NORM = KEYS | HEADS | {"attention.layer_norm_epsilon": EPS}
HEAD_24 = {"attention.key_length": 24, "attention.value_length": 24}
GEMMA = {"head_dim": 24, "query_pre_attn_scalar": 24, "sliding_window": 16}
WINDOW = {"attention.sliding_window": 16, **HEAD_24}
GPT2 = {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
BLOOM = {"vocab_size": 96, "hidden_size": 64, "n_layer": 2, "n_head": 4}
FALCON = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SCALES = {
    "attention_multiplier": 0.5,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.25,
    "logits_scaling": 2.0,
}
LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}

# {case: (GGUF's architecture, transformers' model type, its configuration, GGUF's metadata)}
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "llama": (
        "llama",
        "llama",
        GROUPED | {"rope_theta": 5e5},
        RMS | {"rope.dimension_count": 16, "rope.freq_base": 5e5},
    ),
    "mistral": ("mistral", "mistral", GROUPED | {"sliding_window": None}, RMS | {"rope.dimension_count": 16}),
    "llama-bias": ("llama", "llama", GROUPED | {"attention_bias": True, "tie_word_embeddings": True}, RMS),
    "qwen2": ("qwen2", "qwen2", GROUPED, RMS),
    "qwen3": ("qwen3", "qwen3", GROUPED | {"head_dim": 24}, RMS | HEAD_24),
    "gemma": ("gemma", "gemma", GROUPED | {"head_dim": 24}, RMS | HEAD_24),
    "gemma2": (
        "gemma2",
        "gemma2",
        GROUPED | GEMMA | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
        RMS | WINDOW | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        "gemma3",
        "gemma3_text",
        GROUPED | GEMMA | {"num_hidden_layers": 6, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        RMS
        | WINDOW
        | {
            "block_count": 6,
            "rope.freq_base": 1e6,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
    ),
    "phi2": (
        "phi2",
        "phi",
        SHAPE | {"partial_rotary_factor": 0.5},
        NORM | {"attention.head_count_kv": 4, "rope.dimension_count": 8},
    ),
    "phi3": ("phi3", "phi3", GROUPED | {"pad_token_id": 0}, RMS | {"rope.dimension_count": 16}),
    "gpt2": ("gpt2", "gpt2", GPT2, NORM | {"feed_forward_length": 256}),
    "bloom": ("bloom", "bloom", BLOOM, NORM | {"feed_forward_length": 256}),
    "falcon": ("falcon", "falcon", FALCON, NORM | {"attention.head_count_kv": 1, "feed_forward_length": 256}),
    "falcon-grouped": (
        "falcon",
        "falcon",
        FALCON | {"num_kv_heads": 2, "new_decoder_architecture": True},
        NORM | {"feed_forward_length": 256},
    ),
    "stablelm": (
        "stablelm",
        "stablelm",
        GROUPED | {"partial_rotary_factor": 0.5, "use_qkv_bias": True},
        NORM | {"rope.dimension_count": 8},
    ),
    "starcoder2": ("starcoder2", "starcoder2", GROUPED | {"use_bias": True}, NORM),
    "nemotron": (
        "nemotron",
        "nemotron",
        GROUPED | {"partial_rotary_factor": 0.5},
        NORM | {"rope.dimension_count": 8},
    ),
    "granite": (
        "granite",
        "granite",
        GROUPED | SCALES,
        RMS | {"attention.scale": 0.5, "embedding_scale": 3.0, "residual_scale": 0.25, "logit_scale": 2.0},
    ),
    "smollm3": (
        "smollm3",
        "smollm3",
        GROUPED | {"num_hidden_layers": 4, "pad_token_id": 0},
        RMS | {"block_count": 4},
    ),
    "olmo2": ("olmo2", "olmo2", GROUPED | {"pad_token_id": 0}, RMS),
    "command-r": (
        "command-r",
        "cohere",
        GROUPED | {"logit_scale": 0.1, "pad_token_id": 0},
        NORM | {"logit_scale": 0.1},
    ),
    "arcee": ("arcee", "arcee", GROUPED | {"pad_token_id": 0}, RMS),
    "cohere2": (
        "cohere2",
        "cohere2",
        GROUPED | {"logit_scale": 0.1, "pad_token_id": 0, "num_hidden_layers": 4, "sliding_window": 16},
        NORM | {"logit_scale": 0.1, "block_count": 4, "attention.sliding_window": 16},
    ),
    "mpt": (
        "mpt",
        "mpt",
        {"vocab_size": 96, "d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
        NORM | {"attention.head_count_kv": 4, "feed_forward_length": 256, "attention.max_alibi_bias": 8.0},
    ),
    "qwen3vl": ("qwen3vl", "qwen3", GROUPED | {"head_dim": 24}, RMS | HEAD_24),
    "seed_oss": ("seed_oss", "seed_oss", GROUPED | {"head_dim": 16, "pad_token_id": 0}, RMS),
    "starcoder": (
        "starcoder",
        "gpt_bigcode",
        GPT2,
        NORM | {"attention.head_count_kv": 1, "feed_forward_length": 256},
    ),
    "gptneox": ("gptneox", "gpt_neox", SHAPE | {"rotary_pct": 0.25}, NORM | {"rope.dimension_count": 4}),
}
EPSILONS = dict.fromkeys(
    ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"), EPS
)
LLAMA_KEYS = CASES["llama"][3]


def random_model(model_type: str, fields: dict[str, Any]) -> Any:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **EPSILONS, **fields)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.08 if parameter.ndim > 1 else 0.3
            parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
    return model


def logits(model: Any, tokens: int = 40) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(tokens)[None] % model.config.vocab_size).logits


def derived(path: Path) -> Path:
    folder = path.parent / "derived"
    folder.mkdir()
    derive_gguf(path, folder)
    return folder


def same(a: torch.Tensor, b: torch.Tensor, limit: float = 1e-4) -> bool:
    assert a.std() > 0.01
    return bool((a - b).abs().max() <= limit * a.std())


@pytest.mark.parametrize("case", CASES)
def test_architectures(case: str, tmp_path: Path) -> None:
    architecture, model_type, fields, metadata = CASES[case]
    model = random_model(model_type, fields)
    write_gguf(tmp_path / "a.gguf", model, architecture, metadata)
    assert same(logits(model), logits(load(derived(tmp_path / "a.gguf"))))


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q5_1, Kind.Q8_0])
def test_types_as_transformers_reads_them(kind: Kind, tmp_path: Path) -> None:
    """transformers' reader dequantizes whole tensors and undoes the order of rows."""
    model = random_model("llama", GROUPED)
    path = tmp_path / "a.gguf"
    write_gguf(path, model, "llama", LLAMA_KEYS, kind)
    theirs = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    tensors = open_checkpoint(derived(path)).tensors
    assert set(tensors) == set(theirs)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor.read_float32(), theirs[name].float().numpy(), name)
    assert {tensor.dtype for tensor in tensors.values()} == {kind.name, "F32"}


@pytest.mark.parametrize(
    ("scaling", "metadata"),
    [
        ({"rope_type": "linear", "factor": 4.0}, {"type": "linear", "factor": 4.0}),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
            {"type": "yarn", "factor": 4.0, "original_context_length": 16},
        ),
        (LLAMA3 | {"original_max_position_embeddings": 8192}, {}),
        (LLAMA3 | {"original_max_position_embeddings": 8}, {}),
        (
            LLAMA3
            | {"high_freq_factor": 16.0, "low_freq_factor": 2.0, "original_max_position_embeddings": 64},
            {},
        ),
    ],
)
def test_scaled_rotary_embeddings(scaling: dict[str, Any], metadata: dict[str, Any], tmp_path: Path) -> None:
    fields = GROUPED | {"head_dim": 32, "rope_theta": 5e5, "rope_scaling": scaling}
    model = random_model("llama", fields)
    tensors = {}
    if scaling["rope_type"] == "llama3":
        frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](model.config, "cpu")
        plain = 5e5 ** (-torch.arange(0, 32, 2) / 32)
        tensors["rope_freqs.weight"] = (plain / frequencies).numpy().astype(np.float32)
    keys = {f"rope.scaling.{name}": value for name, value in metadata.items()}
    size = {"rope.dimension_count": 32, "attention.key_length": 32, "attention.value_length": 32}
    write_gguf(tmp_path / "a.gguf", model, "llama", LLAMA_KEYS | size | keys, tensors=tensors)
    assert same(logits(model, 60), logits(load(derived(tmp_path / "a.gguf")), 60))


@pytest.mark.parametrize(
    ("metadata", "tensors", "complaint"),
    [
        ({"rope.scaling.type": "ntk", "rope.scaling.factor": 2.0}, {}, "rope.scaling.type ntk, which is not"),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.yarn_ext_factor": 0.5, "rope.scaling.factor": 2.0},
            {},
            "rope.scaling.yarn_ext_factor, which is not supported",
        ),
        (
            {},
            {"rope_freqs.weight": np.array([1, 2, 1, 4, 1, 2, 1, 3], np.float32)},
            "not a scaling of Llama 3",
        ),
        ({"expert_count": 8}, {}, "mixture of experts"),
        (
            {"attention.sliding_window": 8},
            {},
            "attention.sliding_window 8, which transformers' llama does not",
        ),
        ({"logit_scale": 0.5}, {}, "llama.logit_scale 0.5, which is not supported for llama"),
        ({"attention.causal": False}, {}, "attention.causal False"),
        ({"attention.head_count_kv": [2, 4]}, {}, "head_count_kv differs between layers"),
        ({"rope.dimension_count": 8, "attention.key_length": 16}, {}, "rotates 8 of 16 numbers"),
        ({"feed_forward_length": 95}, {}, r"has blk.0.ffn_gate.weight as \[96, 64\], not as \[95, 64\]"),
        ({"block_count": 3}, {}, "lacks model.layers.2.self_attn.q_proj.weight"),
    ],
)
def test_settings_that_the_model_cannot_have(
    metadata: dict[str, Any], tensors: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, random_model("llama", GROUPED), "llama", LLAMA_KEYS | metadata, tensors=tensors)
    with pytest.raises(ModelError, match=complaint) as error:
        derived(path)
    assert "\n" not in str(error.value)


def test_an_unknown_architecture(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError, match="architecture 'mamba', which is not supported: use one of arcee, "):
        derived(tmp_path / "a.gguf")


def test_tensors_that_are_stored_apart_or_joined(tmp_path: Path) -> None:
    """phi3 with separate queries, keys and values; phi2 with joined ones. Other tensors are named."""

    def apart(name: str, weights: np.ndarray) -> dict[str, np.ndarray]:
        if "attn_qkv" not in name:
            return {name: weights}
        q, k, v = np.split(weights, [64, 96])
        return {name.replace("qkv", "q"): q, name.replace("qkv", "k"): k, name.replace("qkv", "v"): v}

    model = random_model("phi3", GROUPED | {"pad_token_id": 0})
    more = {"blk.0.extra.weight": np.zeros(3, np.float32)}
    write_gguf(
        tmp_path / "a.gguf", model, "phi3", RMS | {"rope.dimension_count": 16}, tensors=more, edit=apart
    )
    folder = tmp_path / "one"
    folder.mkdir()
    assert any(
        "skipped 1 tensor: blk.0.extra.weight" in line for line in derive_gguf(tmp_path / "a.gguf", folder)
    )
    assert same(logits(model), logits(load(folder)))

    pending: dict[str, list[np.ndarray]] = {}

    def joined(name: str, weights: np.ndarray) -> dict[str, np.ndarray]:
        for part in ("attn_q.", "attn_k.", "attn_v."):
            if part in name:
                fused = name.replace(part, "attn_qkv.")
                pending.setdefault(fused, []).append(weights)
                return {fused: np.concatenate(pending[fused])} if len(pending[fused]) == 3 else {}
        return {name: weights}

    model = random_model("phi", CASES["phi2"][2])
    write_gguf(tmp_path / "b.gguf", model, "phi2", CASES["phi2"][3], edit=joined)
    assert same(logits(model), logits(load(derived(tmp_path / "b.gguf"))))


def test_special_tokens(tmp_path: Path) -> None:
    ids = {"bos": 1, "eos": 2, "eot": 5, "padding": 0}
    general = {f"tokenizer.ggml.{name}_token_id": value for name, value in ids.items()}
    write_gguf(tmp_path / "a.gguf", random_model("llama", GROUPED), "llama", LLAMA_KEYS, general=general)
    folder = derived(tmp_path / "a.gguf")
    config, generation = (
        json.loads((folder / name).read_text()) for name in ("config.json", "generation_config.json")
    )
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 0)
    assert generation == {"bos_token_id": 1, "eos_token_id": [2, 5], "pad_token_id": 0}
    assert (folder / FILE).is_file()
    assert config["architectures"] == ["LlamaForCausalLM"]
