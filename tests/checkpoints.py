"""Tiny random checkpoints in the layout of Hugging Face, for any test that needs a model.

    write_checkpoint(directory, **GROUPED)                      # one model.safetensors
    write_checkpoint(directory, **DEMO, shards=3)               # three shards and their index
    write_checkpoint(directory, **DEMO, dtype="bfloat16")       # stored as bf16
    write_checkpoint(directory, **GROUPED, format="bin")        # pytorch_model.bin, tied weights twice

The weights are drawn so that the logits differ well from token to token and from position to position:
a graph that drops the mask, a position or a head does not pass by luck. No tokenizer is written.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

# The shape of the demo model (hidden 64, 16 heads of 4), with fewer layers and words.
DEMO: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}

# Everything odd at once: 6 query heads over 2, a head of 10 (6 * 10 != 48), tied embeddings.
GROUPED: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


def write_checkpoint(
    directory: str | Path,
    *,
    model_type: str = "llama",
    dtype: str = "float32",
    shards: int = 1,
    format: str = "safetensors",
    seed: int = 0,
    **config: Any,
) -> Path:
    """Write `config.json` and the weights of a random model into `directory`, and return it.

    model_type: any causal language model that transformers knows (llama, mistral, qwen2, ...).
    dtype: how the tensors are stored (float32, bfloat16, float16).
    shards: 1 writes `model.safetensors`; more write that many shards and `model.safetensors.index.json`.
    format: safetensors, or bin for `pytorch_model.bin`, as transformers wrote it: what is tied comes under
    each of its names, as one storage.
    config: fields of config.json; DEMO where none is given.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    settings = AutoConfig.for_model(model_type, **(config or DEMO))
    settings.dtype = dtype
    settings.architectures = [type(AutoModelForCausalLM.from_config(settings)).__name__]
    settings.save_pretrained(directory)

    model = AutoModelForCausalLM.from_config(settings)
    model.tie_weights()
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():  # a tied parameter comes once
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            value = noise * (0.3 if "embed" in name else 1.5 / parameter.shape[-1] ** 0.5)
        else:
            value = noise * 0.2 + (0.0 if name.endswith("bias") else 1.0)
        tensors[name] = value.to(getattr(torch, dtype))

    def save(part: dict[str, torch.Tensor], file: str) -> None:
        if format == "bin":
            torch.save(part, directory / file)
        else:
            save_file(part, directory / file, metadata={"format": "pt"})

    stem, suffix = ("pytorch_model", "bin") if format == "bin" else ("model", "safetensors")
    if format == "bin":
        first = {id(parameter): name for name, parameter in model.named_parameters()}
        state = model.state_dict(keep_vars=True)
        tensors = {name: tensors[first[id(parameter)]] for name, parameter in state.items()}
    if shards == 1:
        save(tensors, f"{stem}.{suffix}")
        return directory
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"{stem}-{shard + 1:05}-of-{shards:05}.{suffix}"
        part = {name: tensor for k, (name, tensor) in enumerate(tensors.items()) if k % shards == shard}
        save(part, file)
        weight_map.update(dict.fromkeys(part, file))
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / f"{stem}.{suffix}.index.json").write_text(json.dumps(index, indent=2))
    return directory


def write_first_layers(source: Path, directory: Path, layers: int) -> Path:
    """Write a copy of the checkpoint `source` that ends after some layers, and return its folder.

    source: a folder with one model.safetensors; the tokenizer is copied, too.
    """
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, directory)
    config = json.loads((source / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    tensors = {
        name: tensor
        for name, tensor in load_file(source / "model.safetensors").items()
        if not name.startswith("model.layers.") or int(name.split(".")[2]) < layers
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
