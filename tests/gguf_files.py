"""Tiny GGUF files, as llama.cpp's converter writes them of a model of transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind

Layout = Callable[[str, np.ndarray, Any], np.ndarray]


def permuted(name: str, weights: np.ndarray, config: Any) -> np.ndarray:
    """llama.cpp's order of the rows of queries and keys: neighbors are rotated, not halves."""
    if ".attn_q." not in name and ".attn_k." not in name:
        return weights
    heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
    halves = weights.reshape(heads, 2, -1, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def plus_one(name: str, weights: np.ndarray, config: Any) -> np.ndarray:
    """llama.cpp stores Gemma's norms with the 1 that transformers adds."""
    return weights + 1 if name.endswith("norm.weight") else weights


def transposed(name: str, weights: np.ndarray, config: Any) -> np.ndarray:
    """GPT-2's matrices are stored as those of other models."""
    matrices = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
    return weights.T if name.endswith(matrices) else weights


def split_heads(name: str, weights: np.ndarray, config: Any) -> np.ndarray:
    """Bloom and GPT-NeoX interleave queries, keys and values by heads; llama.cpp does not."""
    if "attn_qkv" not in name:
        return weights
    heads = config.num_attention_heads
    parts = weights.reshape(heads, 3, -1, *weights.shape[1:])
    return np.concatenate([parts[:, one].reshape(-1, *weights.shape[1:]) for one in range(3)])


def grouped(name: str, weights: np.ndarray, config: Any) -> np.ndarray:
    """Falcon interleaves queries, keys and values by groups of heads; llama.cpp does not."""
    if "attn_qkv" not in name or not config.new_decoder_architecture:
        return weights
    parts = weights.reshape(config.num_kv_heads, -1, config.head_dim, *weights.shape[1:])
    q, k, v = parts[:, :-2], parts[:, -2:-1], parts[:, -1:]
    return np.concatenate([one.reshape(-1, *weights.shape[1:]) for one in (q, k, v)])


def unchanged(name: str, weights: np.ndarray, config: Any) -> np.ndarray:
    return weights


LAYOUTS: dict[str, Layout] = {
    **dict.fromkeys(("llama", "mistral", "granite", "smollm3", "olmo", "arcee"), permuted),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "nemotron"), plus_one),
    **dict.fromkeys(("bloom", "gptneox"), split_heads),
    "falcon": grouped,
    "gpt2": transposed,
}


def write_gguf(
    path: Path,
    model: Any,
    architecture: str,
    metadata: Mapping[str, Any],
    kind: Kind = Kind.F32,
    tensors: Mapping[str, np.ndarray] | None = None,
    general: Mapping[str, Any] | None = None,
    edit: Callable[[str, np.ndarray], dict[str, np.ndarray]] = lambda name, weights: {name: weights},
    tensors_per_file: int = 0,
) -> dict[str, np.ndarray]:
    """Write a model and return what the file says: {parameter: dequantized weights}, in transformers' layout.

    kind: the type of matrices whose rows are multiples of its block; others are float32.
    metadata: keys of the architecture; general: other keys, such as those of the tokenizer.
    tensors: further tensors. edit: splits or renames a tensor. tensors_per_file: 0 for one file.
    """
    layers = model.config.num_hidden_layers
    like = "llama" if architecture == "mistral" else architecture
    kinds = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[like], layers)
    layout = LAYOUTS.get(architecture, unchanged)
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=tensors_per_file)
    for key, value in {
        **{f"{architecture}.{name}": one for name, one in metadata.items()},
        **(general or {}),
    }.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_array(key, value)
    expected: dict[str, np.ndarray] = {}
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        weights = tensor.to(torch.float32).numpy()
        short = name.removeprefix(f"{model.base_model_prefix}.")
        gguf_name = names.get_name(name, (".weight", ".bias")) or names.get_name(short, (".weight", ".bias"))
        assert gguf_name is not None, name
        # A quantized type rounds the weights by rows, which llama.cpp's layout permutes.
        moved = np.ascontiguousarray(layout(gguf_name, weights, model.config))
        expected[name] = weights
        for part, values in edit(gguf_name, moved).items():
            block, _ = gguf.GGML_QUANT_SIZES[kind]
            used = kind if values.ndim == 2 and values.shape[1] % block == 0 else Kind.F32
            if used == Kind.F32:
                writer.add_tensor(part, np.ascontiguousarray(values))
                continue
            data = gguf.quantize(values, used)
            writer.add_tensor(part, data, raw_dtype=used)
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected
