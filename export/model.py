"""A model's structure and computed buffers, built by transformers from `config.json`, without weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import Cache

from export.attention import NAMES, blocks_of
from export.config import CheckpointConfig
from export.families import Family, family_of
from export.options import check_length, parse_attention
from o2o.errors import ModelError


class LanguageModel:
    """A decoder-only transformer on the meta device; every call takes its parameters as arguments.

    Buffers that the model computes (rotary frequencies) are real. Tied parameters are one parameter, under
    the first of their names.

    Attributes:
        parameters: {name: shape}, in the model's order.
        aliases: {name: its other names}, for tied parameters.
        layers: Number of transformer layers.
        key_value_heads: K.
        head_dim: H.
        family: The rules of its model family.
        attn_implementation: The argument.
        causal_operator: Whether attention is `o2o.attention`, which is masked by position, not by a
            mask operand.
    """

    def __init__(self, config: Any, attn_implementation: str = "eager") -> None:
        """Build the model's structure.

        Args:
            config: transformers' configuration.
            attn_implementation: `grouped`, `flash`, `flash:Q,KV`, or a name that transformers knows.

        Raises:
            ModelError: transformers cannot build this architecture, or it has no attention heads.
        """
        self.attn_implementation = attn_implementation
        kind, self._blocks = parse_attention(attn_implementation)
        self.causal_operator = kind in NAMES
        self.config = config
        self.kind: str = config.model_type
        self._checkpoint_config = CheckpointConfig(config.to_dict(), self.kind)
        self.family: Family = family_of(self._checkpoint_config)
        if getattr(config, "quantization_config", None):
            raise ModelError("the checkpoint is quantized: export needs float32, float16 or bfloat16 weights")
        try:
            with torch.device("meta"):
                self.module = AutoModelForCausalLM.from_config(
                    config,
                    dtype=torch.float32,
                    attn_implementation=NAMES.get(kind, kind),
                ).eval()
        except Exception as error:
            reason = summarize_error(error)
            raise ModelError(f"transformers cannot build this {self.kind} model: {reason}") from error
        _compute_buffers(self.module)

        text = config.get_text_config(decoder=True)
        heads = getattr(text, "num_attention_heads", None)
        if not heads:
            raise ModelError(f"a {self.kind} model has no attention heads, so no keys and values to cache")
        self.layers: int = text.num_hidden_layers
        self.key_value_heads: int = getattr(text, "num_key_value_heads", None) or heads
        self.head_dim: int = getattr(text, "head_dim", None) or text.hidden_size // heads

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
        """Build the model of `directory/config.json`.

        Args:
            directory: The checkpoint's folder.
            attn_implementation: See `__init__`.

        Returns:
            The model without weights.

        Raises:
            ModelError: transformers does not know the configuration, or cannot build its architecture.
        """
        try:
            config = AutoConfig.from_pretrained(Path(directory), local_files_only=True)
        except Exception as error:
            raise ModelError(f"{Path(directory) / 'config.json'}: {summarize_error(error)}") from error
        return cls(config, attn_implementation)

    def __call__(
        self,
        weights: Sequence[torch.Tensor],
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        mask: torch.Tensor,
        cache: Cache,
    ) -> torch.Tensor:
        """Compute the logits.

        Args:
            weights: One tensor for each of `parameters`, in that order.
            input_ids: int64 [B, T].
            position_ids: int64 [B, T].
            mask: Additive float [B, 1, T, number of keys], 0 where a key is visible.
            cache: Its `update` receives the rotated keys and the values [B, K, T, H] of each layer.

        Returns:
            float32 [B, T, V].
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
        """Make a tensor for each parameter that takes no memory.

        Returns:
            One tensor of each parameter's shape; all strides are 0.
        """
        return tuple(torch.zeros(()).expand(shape) for shape in self.parameters.values())

    @property
    def max_positions(self) -> int | None:
        """The longest context in tokens; None for no limit."""
        return self._checkpoint_config.positions

    def check_length(self, tokens: int) -> None:
        """Check that the model can see a context in full.

        Args:
            tokens: The length of the context.

        Raises:
            UsageError: See `export.options.check_length`.
        """
        check_length(self._checkpoint_config, tokens, "a context of")


@torch.no_grad()
def _compute_buffers(model: Any) -> None:
    """Replace the buffers on the meta device by real ones.

    The model's `_init_weights` fills them, as in transformers itself. Raises ModelError if one stays empty.
    """
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
                raise ModelError(
                    f"{model.config.model_type}: transformers does not compute the buffer {prefix}{name}: "
                    f"export does not support this architecture"
                )


def summarize_error(error: BaseException) -> str:
    """Summarize an exception of another library for a one-line message.

    Args:
        error: The exception.

    Returns:
        Its class and the first line of its message.
    """
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
