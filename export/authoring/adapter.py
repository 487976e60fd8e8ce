"""A model of one's own as a model of transformers: export and verification take it as any other.

`register` makes `AutoConfig` and `AutoModelForCausalLM` know its model type.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # noqa: F401  # says: it uses the interface

from export.attention import implementation_of
from export.authoring.model_file import ModelFile, load, reports_line
from export.config import SOURCE
from o2o.operators.masks import LOWEST


class AuthoredModel(PreTrainedModel):
    """Base of the classes that `register` makes; one for each model type."""

    base_model_prefix = "model"
    _supports_attention_backend = True
    model_file: ModelFile

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.own_config = self.model_file.config(getattr(config, SOURCE))
        self.model = self.model_file.build(self.own_config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leave a module as the model file has made it."""

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """Call the model as its protocol says.

        Args:
            input_ids: int64 [1, T].
            attention_mask: Additive float32 [1, 1, T, S]; None for a causal mask.
            position_ids: int64 [1, T]; None for those that follow the cache.
            past_key_values: The cache; None for an empty one.
            use_cache: Ignored.
            others: Ignored.

        Returns:
            The logits float32 [1, T, V], and the cache.
        """
        cache = DynamicCache() if past_key_values is None else past_key_values
        T = input_ids.shape[1]
        if position_ids is None:
            start = cache.get_seq_length()
            position_ids = torch.arange(start, start + T)[None]
        if attention_mask is None or attention_mask.dim() != 4:
            mask = create_causal_mask(
                self.config, input_ids[..., None].float(), attention_mask, cache, position_ids=position_ids
            )
            attention_mask = mask if mask is not None else _causal(position_ids)
        with reports_line(self.model_file.path), implementation_of(self.config._attn_implementation):
            logits = self.model(input_ids, position_ids, attention_mask, cache)
        return CausalLMOutputWithPast(logits=logits, past_key_values=cache)


def _causal(position_ids: torch.Tensor) -> torch.Tensor:
    """The mask of a whole text, where transformers makes none."""
    keys = torch.arange(int(position_ids.max()) + 1)
    return torch.where(keys <= position_ids[..., None], 0.0, LOWEST)[:, None]


def register(model_type: str, path: Path) -> None:
    """Make transformers know a model type, unless it does.

    Args:
        model_type: The `model_type` of the derived config.json.
        path: The model file.

    Raises:
        ModelError: The file fails, or does not define what is needed.
        UsageError: There is no such file.
    """
    if _REGISTERED.get(model_type) == path:
        return
    config_class: Any = type("AuthoredConfig", (PreTrainedConfig,), {"model_type": model_type})
    model_class = type(
        "AuthoredForCausalLM", (AuthoredModel,), {"config_class": config_class, "model_file": load(path)}
    )
    AutoConfig.register(model_type, config_class, exist_ok=True)
    AutoModelForCausalLM.register(config_class, model_class, exist_ok=True)
    _REGISTERED[model_type] = path


_REGISTERED: dict[str, Path] = {}
