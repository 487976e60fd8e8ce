"""A random checkpoint, as transformers saves it.

Every parameter is random, also biases and the weights of norms: transformers' own zeros and ones would hide a
missing addition or multiplication. Logits differ well from token to token and from position to position.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM


def write(directory: Path, model_type: str, fields: Mapping[str, Any], seed: int = 0) -> Any:
    """Write `config.json` and the weights of a random model.

    Args:
        directory: The folder to create.
        model_type: The `model_type` of config.json.
        fields: Its other fields.
        seed: The seed of the random numbers.

    Returns:
        transformers' model with these weights, in float32, with eager attention.
    """
    config = AutoConfig.for_model(model_type, **fields)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # a tied parameter comes once
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                scale = (
                    0.3
                    if "embed" in name or "wte" in name or "wpe" in name
                    else 1.5 / parameter.shape[-1] ** 0.5
                )
                parameter.copy_(noise * scale)
            else:
                parameter.copy_(noise * 0.2 + (0.0 if name.endswith("bias") else 1.0))
    model.save_pretrained(directory)
    return model
