"""Checkpoints of llama2.c (version 0 of its export format): conversion to a Hugging Face Llama, random ones.

The file has seven int32: dim, hidden_dim, layers, heads, key/value heads, vocabulary, sequence length. A
positive vocabulary means tied embeddings. Then follow float32 arrays, each with one kind of weight of all
layers. RoPE pairs are neighbors (2i, 2i + 1) in the file and halves (i, i + H/2) in Hugging Face. The rows
of q and k are permuted accordingly.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def write_random(path: Path, sizes: Sequence[int] = (64, 172, 5, 8, 4, 512, 512), seed: int = 0) -> None:
    """Write a checkpoint of random weights.

    Args:
        path: The file; its folder is created if it does not exist.
        sizes: The seven numbers of the header; the defaults are those of stories260K.
        seed: The seed of the numbers.
    """
    dim, hidden, layers, heads, kv_heads, vocabulary, length = sizes
    size = dim // heads
    per_layer = dim * size * 2 * (heads + kv_heads) + 3 * dim * hidden
    random = np.random.default_rng(seed)
    parts = [
        random.normal(0, 0.3, vocabulary * dim),
        1 + random.normal(0, 0.2, layers * dim),
        random.normal(0, dim**-0.5, layers * (per_layer - 3 * dim * hidden)),
        1 + random.normal(0, 0.2, layers * dim),
        random.normal(0, dim**-0.5, layers * 3 * dim * hidden),
        1 + random.normal(0, 0.2, dim),
        np.zeros(length * size),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<7i", *sizes) + np.concatenate(parts).astype("<f4").tobytes())


def convert(source: Path, directory: Path) -> Path:
    """Convert a checkpoint.

    Args:
        source: The llama2.c file.
        directory: The folder for `config.json` and `model.safetensors`.

    Returns:
        `directory`.
    """
    from safetensors.numpy import save_file

    data = source.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocabulary, length = struct.unpack_from("<7i", data)
    tied, vocabulary = vocabulary > 0, abs(vocabulary)
    size = dim // heads
    numbers = np.frombuffer(data, "<f4", offset=28)
    position = 0

    def take(*shape: int) -> np.ndarray:
        nonlocal position
        count = int(np.prod(shape))
        position += count
        return numbers[position - count : position].reshape(shape)

    def halves(rows: np.ndarray, count: int) -> np.ndarray:
        pairs = rows.reshape(layers, count, size // 2, 2, dim)
        return pairs.swapaxes(2, 3).reshape(layers, count * size, dim)

    tensors = {"model.embed_tokens.weight": take(vocabulary, dim)}
    stacks = {"input_layernorm": take(layers, dim)}
    stacks["self_attn.q_proj"] = halves(take(layers, heads * size, dim), heads)
    stacks["self_attn.k_proj"] = halves(take(layers, kv_heads * size, dim), kv_heads)
    stacks["self_attn.v_proj"] = take(layers, kv_heads * size, dim)
    stacks["self_attn.o_proj"] = take(layers, dim, heads * size)
    stacks["post_attention_layernorm"] = take(layers, dim)
    stacks["mlp.gate_proj"] = take(layers, hidden, dim)
    stacks["mlp.down_proj"] = take(layers, dim, hidden)
    stacks["mlp.up_proj"] = take(layers, hidden, dim)
    tensors["model.norm.weight"] = take(dim)
    take(2, length, size // 2)  # RoPE tables, not needed
    if not tied:
        tensors["lm_head.weight"] = take(vocabulary, dim)
    for kind, stack in stacks.items():
        for layer in range(layers):
            tensors[f"model.layers.{layer}.{kind}.weight"] = stack[layer]
    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, directory / "model.safetensors")
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": dim,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": length,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "float32",
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory
