"""The shape facts of a checkpoint's `config.json`, read without torch or transformers.

All packages and benchmarks read these facts here. transformers reads `config.json` itself to build the model
(`export.model`); a test compares both for many families.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from o2o.errors import ModelError

# The names that families use for one fact; the first is the usual one.
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
WIDTH = ("hidden_size", "n_embd", "n_embed", "d_model")
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")
SOFTCAPS = ("attn_logit_softcapping", "attn_logit_softcap")


class CheckpointConfig:
    """The language model's part of a `config.json`.

    Each fact is looked up at its first use, so a file needs only the facts that are used. A missing or
    malformed fact raises ModelError.
    """

    def __init__(self, fields: Mapping[str, Any], directory: str | os.PathLike[str]) -> None:
        """Wrap the parsed file.

        Args:
            fields: The JSON object. Its `text_config`, if there is one, holds the language model's fields.
            directory: The checkpoint's folder, for messages.
        """
        text = fields.get("text_config")
        self.fields: dict[str, Any] = dict(fields) if text is None else dict(text)
        self._fallback = fields
        self._directory = directory

    @classmethod
    def read(cls, directory: str | os.PathLike[str]) -> CheckpointConfig:
        """Read `directory/config.json`.

        Args:
            directory: The checkpoint's folder.

        Returns:
            The configuration of its language model.

        Raises:
            ModelError: The file is missing, or is no JSON object.
        """
        try:
            return cls(json.loads((Path(directory) / "config.json").read_text(encoding="utf-8")), directory)
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise ModelError(f"{directory}: no usable config.json ({reason})") from error

    @property
    def model_type(self) -> str:
        """The family, such as `llama`."""
        model_type = self.fields.get("model_type", self._fallback.get("model_type"))
        if not isinstance(model_type, str):
            raise self._unusable("model_type", model_type)
        return model_type

    @property
    def needs_code(self) -> bool:
        """Whether the checkpoint has Python code for transformers, under `auto_map`."""
        return bool(self._fallback.get("auto_map"))

    @property
    def layers(self) -> int:
        """Number of transformer layers."""
        return self._required(LAYERS)

    @property
    def heads(self) -> int:
        """N, query heads of a layer."""
        return self._required(HEADS)

    @property
    def kv_heads(self) -> int:
        """K, key/value heads of a layer."""
        return self._optional(("num_key_value_heads",)) or self.heads

    @property
    def head_dim(self) -> int:
        """H, the size of a head."""
        return self._optional(("head_dim",)) or self.hidden_size // self.heads

    @property
    def hidden_size(self) -> int:
        """D, the model dimension."""
        return self._required(WIDTH)

    @property
    def vocab_size(self) -> int:
        """V, the number of token ids."""
        return self._required(("vocab_size",))

    @property
    def positions(self) -> int | None:
        """The longest context in tokens; None for a model without a limit."""
        return self._optional(POSITIONS)

    @property
    def sliding_window(self) -> int | None:
        """How many keys a query sees; None for all. `use_sliding_window: false` switches it off (Qwen2)."""
        if self.fields.get("use_sliding_window") is False:
            return None
        return self._optional(("sliding_window",))

    @property
    def attention_softcap(self) -> float | None:
        """The bound of attention scores before the softmax, as in Gemma 2; None for none."""
        return next((float(self.fields[name]) for name in SOFTCAPS if self.fields.get(name)), None)

    def _required(self, names: tuple[str, ...]) -> int:
        value = self._optional(names)
        if value is None:
            raise self._unusable(names[0], None)
        return value

    def _optional(self, names: tuple[str, ...]) -> int | None:
        """The first of `names` that has a value. 0 counts as none."""
        name = next((name for name in names if self.fields.get(name)), names[0])
        value = self.fields.get(name)
        if not value and not isinstance(value, str):
            return None
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self._unusable(name, value)
        return value

    def _unusable(self, name: str, value: object) -> ModelError:
        reason = f"it lacks {name}" if value is None else f"{name} is {value!r}"
        return ModelError(f"{self._directory}: no usable config.json ({reason})")
