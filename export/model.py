"""The model of a config.json: its structure and computed buffers, without a single weight."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import Cache

from export.attention import OPERATOR, blocks_of, implementation
from o2o.errors import ModelError, UsageError


class LanguageModel:
    """A decoder-only transformer on the meta device; its parameters come in from outside at every call.

    Buffers that the model computes for itself (rotary frequencies) are real. Parameters that are tied are
    one parameter, under the first of its names.

        parameters   {name: shape}, in the model's order
        aliases      {name: its other names}, for tied parameters
        layers, key_value_heads (K), head_dim (H)
    """

    def __init__(self, config: Any, attn_implementation: str = "eager") -> None:
        """attn_implementation: transformers' own, or `grouped`, `flash`, `flash:Q,KV` (`export.attention`).

        Raises ModelError for an architecture that transformers cannot build from `config`.
        """
        name, self._blocks = implementation(attn_implementation)
        self.causal_operator = name in OPERATOR
        """Whether attention is one operator that goes by positions, and looks at no mask."""
        self.config = config
        self.kind: str = config.model_type
        if getattr(config, "quantization_config", None):
            raise ModelError("a quantised checkpoint: export takes weights in float32, float16 or bfloat16")
        try:
            with torch.device("meta"):
                self.module = AutoModelForCausalLM.from_config(
                    config,
                    dtype=torch.float32,
                    attn_implementation=name,
                ).eval()
        except Exception as error:
            what = reason_of(error)
            raise ModelError(f"transformers cannot build this {self.kind} model: {what}") from error
        _compute_buffers(self.module)

        text = config.get_text_config(decoder=True)
        heads = getattr(text, "num_attention_heads", None)
        if not heads:
            raise ModelError(f"a {self.kind} model has no attention heads, so no keys and values to cache")
        self.layers: int = text.num_hidden_layers
        self.key_value_heads: int = getattr(text, "num_key_value_heads", None) or heads
        self.head_dim: int = getattr(text, "head_dim", None) or text.hidden_size // heads
        self.max_positions: int | None = getattr(text, "max_position_embeddings", None)
        self.sliding_window: int | None = getattr(text, "sliding_window", None)

        self.parameters: dict[str, tuple[int, ...]] = {}
        self.aliases: dict[str, list[str]] = {}
        first_name: dict[int, str] = {}
        for name, tensor in self.module.state_dict(keep_vars=True).items():
            first = first_name.setdefault(id(tensor), name)
            if first == name:
                self.parameters[name] = tuple(tensor.shape)
            else:
                self.aliases.setdefault(first, []).append(name)

    @classmethod
    def read(cls, directory: str | os.PathLike[str], attn_implementation: str = "eager") -> LanguageModel:
        """The model of `directory`/config.json. Raises ModelError."""
        try:
            config = AutoConfig.from_pretrained(Path(directory), local_files_only=True)
        except Exception as error:
            raise ModelError(f"{Path(directory) / 'config.json'}: {reason_of(error)}") from error
        return cls(config, attn_implementation)

    def __call__(
        self,
        weights: Sequence[torch.Tensor],
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        mask: torch.Tensor,
        cache: Cache,
    ) -> torch.Tensor:
        """Logits [B, T, V], float32.

        weights: one tensor for each of `parameters`, in that order. input_ids, position_ids: int64 [B, T].
        mask: additive float [B, 1, T, number of keys], 0 where a key is visible. cache: gets the rotated
        keys and the values [B, K, T, H] of each layer through `update`.
        """
        with blocks_of(self._blocks):
            result = torch.func.functional_call(
                self.module,
                dict(zip(self.parameters, weights, strict=True)),
                (input_ids,),
                {
                    "position_ids": position_ids,
                    "attention_mask": mask,
                    "past_key_values": cache,
                    "use_cache": True,
                },
            )
        return result.logits

    def dummies(self) -> tuple[torch.Tensor, ...]:
        """A tensor for each parameter that has its shape and takes no memory (all strides are 0)."""
        return tuple(torch.zeros(()).expand(shape) for shape in self.parameters.values())

    def check_length(self, tokens: int) -> None:
        """Raises UsageError for a context of `tokens` that this model cannot see in full."""
        if tokens < 1:
            raise UsageError(f"a context of {tokens} tokens: give at least 1")
        if self.max_positions and tokens > self.max_positions:
            raise UsageError(f"a context of {tokens} tokens: this model has {self.max_positions} positions")
        if self.sliding_window and tokens > self.sliding_window:
            raise UsageError(
                f"a context of {tokens} tokens: this model's attention slides over {self.sliding_window}, "
                "and the graphs here let every token see all before it: make it no more"
            )


@torch.no_grad()
def _compute_buffers(model: Any) -> None:
    """Replace the buffers that live on the meta device by real ones, filled as transformers itself does
    after building a model there: by the model's `_init_weights`. Raises ModelError if one stays unfilled."""
    stored = set(model.state_dict())
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        empty = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        empty = [name for name in empty if prefix + name not in stored]
        if not empty:
            continue
        for name in empty:
            unset = torch.empty_like(getattr(module, name), device="cpu")
            if unset.is_floating_point():
                unset.fill_(torch.nan)
            setattr(module, name, unset)
        model._init_weights(module)
        for name in empty:
            if getattr(module, name).isnan().any():
                raise ModelError(f"{model.config.model_type}: nothing computes the buffer {prefix}{name}")


def reason_of(error: BaseException) -> str:
    """What `error` is and the first line of what it says, for a message of one line."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
