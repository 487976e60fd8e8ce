"""The facts of a checkpoint's `config.json`, read without torch or transformers.

All packages and benchmarks read these facts here. transformers reads `config.json` itself to build the model
(`export.model`); a test compares both for many families. Fields that the file lacks have the defaults that
transformers' source declares, and names that families use for one fact are those of its `attribute_map`.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from export.architectures import declaration
from export.completed_fields import completed_fields
from o2o.errors import ModelError

SOURCE = "source_config"
"""The field of the derived config.json of an authored model that has the fields of the original file."""

# The names that families use for one fact; the first is the usual one.
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads")
HEAD_DIM = ("head_dim", "kv_channels", "attention_head_dim")
WIDTH = ("hidden_size", "n_embd", "n_embed", "d_model")
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "model_max_length")
SOFTCAPS = ("attn_logit_softcapping", "attn_logit_softcap")
ACTIVATIONS = ("hidden_act", "activation_function", "hidden_activation", "activation", "afn")
LAYER_TYPES = ("layer_types", "layers_block_type", "attention_layers", "attention_types")
"""Lists of the kind of each layer. GPT-Neo's `attention_types` are nested lists with repetitions."""

# A window under any name: sliding_window, window_size, attention_chunk_size, attention_window_size, ...
_WINDOW = re.compile(r"window|attention_chunk_size$|local_attention$")
_NO_SIZE = re.compile(r"layer|pattern|use_|every|mode|type")
_WINDOWED = re.compile(r"sliding|local|chunk")

_ROPE_ALIASES = {"su": "longrope"}  # as the first Phi-3 files call it
VARYING_ROPES = frozenset({"dynamic", "longrope"})
"""Kinds of rotary embeddings whose frequencies depend on the length of the context."""


@dataclass(frozen=True)
class Rope:
    """Rotary position embeddings of some layers.

    Attributes:
        kind: `default`, `linear`, `dynamic`, `yarn`, `llama3`, `longrope`, ...
        factor: By how much the context is extended; 1 for not.
        original: Positions before the extension; None if the file does not say it.
        missing: Fields that this kind needs and the file lacks.
    """

    kind: str
    factor: float
    original: int | None
    missing: tuple[str, ...] = ()

    def choice(self, context: int, positions: int | None) -> str | None:
        """Describe the frequencies that a context has, if they depend on it.

        Args:
            context: S, tokens.
            positions: The `max_position_embeddings` of the model.

        Returns:
            A phrase such as `longrope with long factors (beyond 4,096 positions)`; None for fixed
            frequencies.
        """
        if self.kind not in VARYING_ROPES:
            return None
        limit = (self.original if self.kind == "longrope" else positions) or positions or context
        side = "up to" if context <= limit else "beyond"
        what = {
            ("longrope", "up to"): "short factors",
            ("longrope", "beyond"): "long factors",
            ("dynamic", "up to"): "the plain base",
            ("dynamic", "beyond"): f"the base of {context:,}",
        }
        return f"{self.kind} with {what[self.kind, side]} ({side} {limit:,} positions)"


class AttentionSizes(NamedTuple):
    """The heads of one layer.

    Attributes:
        heads: N.
        kv_heads: K, of its cache.
        head_dim: H.
    """

    heads: int
    kv_heads: int
    head_dim: int


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
        self._fallback = fields
        self._directory = directory
        self.stored: Mapping[str, Any] = dict(fields) if text is None else dict(text)
        """The fields of the file."""
        self.fields: dict[str, Any] = self._completed(self.stored)
        """These, and the defaults of transformers. Aliases are under both names."""

    def _completed(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        model_type = stored.get("model_type", self._fallback.get("model_type"))
        declared = declaration(model_type) if isinstance(model_type, str) else declaration("")
        fields = {**declared.defaults, **stored}
        for usual, own in declared.aliases.items():
            names = [name for name in (usual, own) if name in stored] or [own, usual]
            value = next((fields[name] for name in names if name in fields), None)
            fields[usual] = fields[own] = value
        return fields

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
    def whole_type(self) -> str:
        """The family of the whole checkpoint, such as `mllama` for the text part `mllama_text_model`."""
        return str(self._fallback.get("model_type", self.model_type))

    @property
    def is_text_part(self) -> bool:
        """Whether these are the fields of a multimodal model's text part."""
        return self.whole_type != self.model_type

    @property
    def is_authored(self) -> bool:
        """Whether a Python file defines the model: that of `--model-file`, or one of `export.models`."""
        return SOURCE in self.fields

    @property
    def needs_code(self) -> bool:
        """Whether the checkpoint has Python code for transformers, under `auto_map`."""
        return bool(self._fallback.get("auto_map"))

    @property
    def architectures(self) -> list[str]:
        """The class that saved the checkpoint, such as `LlamaForCausalLM`; empty if unknown."""
        value = self._fallback.get("architectures")
        return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []

    @property
    def layers(self) -> int:
        """Number of transformer layers."""
        return self._required(LAYERS)

    @property
    def heads(self) -> int:
        """N, query heads of a layer; the most if layers differ."""
        return max(layer.heads for layer in self.attention_layers)

    @property
    def kv_heads(self) -> int:
        """K, key/value heads of a layer's cache; the most if layers differ."""
        return max(layer.kv_heads for layer in self.attention_layers)

    @property
    def head_dim(self) -> int:
        """H, the size of a head; the largest if layers differ."""
        return max(layer.head_dim for layer in self.attention_layers)

    @property
    def attention_layers(self) -> list[AttentionSizes]:
        """The heads of each layer; one entry if the file does not say how many layers there are."""
        return [self._attention_sizes(layer) for layer in range(self._optional(LAYERS) or 1)]

    def _attention_sizes(self, layer: int) -> AttentionSizes:
        heads = self._optional(HEADS, layer)
        if heads is None:
            raise self._unusable(HEADS[0], None)
        kv_heads = self._optional(KV_HEADS, layer) or heads
        if self.fields.get("new_decoder_architecture"):
            kv_heads = heads  # Falcon repeats keys and values before it caches them
        elif self.fields.get("multi_query"):
            kv_heads = 1
        return AttentionSizes(heads, kv_heads, self._optional(HEAD_DIM, layer) or self.hidden_size // heads)

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
        """How many keys a query sees in some layers, under whatever name; None for all keys in all layers."""
        if self.fields.get("use_sliding_window") is False or not self.windowed_layers:
            return None
        sizes = [
            value // 2 if name == "local_attention" else value  # ModernBERT: on both sides
            for name, value in self._with_parts()
            if _WINDOW.search(name)
            and not _NO_SIZE.search(name)
            and isinstance(value, int)
            and not isinstance(value, bool)
            and value > 0
        ]
        return min(sizes, default=None)

    @property
    def windowed_layers(self) -> list[int]:
        """The layers that have a window, if the model has one."""
        if kinds := self.layer_types:
            return [layer for layer, kind in enumerate(kinds) if _WINDOWED.search(kind)]
        return list(range(self._optional(LAYERS) or 1))

    @functools.cached_property
    def layer_types(self) -> list[str]:
        """The kind of each layer, such as `sliding_attention`; empty if nothing says it."""
        if kinds := _layer_types(self.fields):
            return kinds
        model_type, layers = self.fields.get("model_type"), self._optional(LAYERS)
        if not isinstance(model_type, str) or layers is None:
            return []
        return _layer_types(completed_fields(model_type, self.fields, layers))

    @property
    def ropes(self) -> list[Rope]:
        """Rotary position embeddings that `config.json` describes: one for each kind of layer."""
        value = self.fields.get("rope_parameters") or self.fields.get("rope_scaling")
        if not isinstance(value, dict):
            return []
        parts = [part for part in value.values() if isinstance(part, dict)] or [value]
        return [self._rope(part) for part in parts]

    def _rope(self, part: Mapping[str, Any]) -> Rope:
        kind = str(part.get("rope_type") or part.get("type") or "default")
        kind = _ROPE_ALIASES.get(kind, kind)
        original = "original_max_position_embeddings"
        needed = ("short_factor", "long_factor", original) if kind == "longrope" else ()
        missing = [
            name for name in needed if not part.get(name) and not (name == original and self.fields.get(name))
        ]
        return Rope(
            kind,
            self._factor(part.get("factor")),
            part.get(original) or self.fields.get(original),
            tuple(missing),
        )

    @property
    def alibi(self) -> bool:
        """Whether scores have a bias that is linear in the distance (ALiBi), as far as the file says it."""
        return any(name == "alibi" and value is True for name, value in self._with_parts())

    @property
    def activation(self) -> str | None:
        """The activation of the MLP, such as `silu`; None if the file does not say it."""
        return next((str(self.fields[name]) for name in ACTIVATIONS if self.fields.get(name)), None)

    def _with_parts(self) -> Iterator[tuple[str, Any]]:
        """All fields, and those of MPT's and DBRX's `attn_config`."""
        for name, value in self.fields.items():
            yield name, value
            if isinstance(value, dict) and name == "attn_config":
                yield from value.items()

    @property
    def attention_softcap(self) -> float | None:
        """The bound of attention scores before the softmax, as in Gemma 2; None for none."""
        return next((float(self.fields[name]) for name in SOFTCAPS if self.fields.get(name)), None)

    def _factor(self, value: object) -> float:
        """The factor of a rotary embedding; 1 if the file does not say it."""
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise self._unusable("factor of the rotary embedding", value)
        return float(value or 1.0)

    def _required(self, names: tuple[str, ...]) -> int:
        value = self._optional(names)
        if value is None:
            raise self._unusable(names[0], None)
        return value

    def _optional(self, names: tuple[str, ...], layer: int | None = None) -> int | None:
        """The first of `names` that has a value, for one layer if that is a list. 0 counts as none."""
        name = next((name for name in names if self.fields.get(name)), names[0])
        value = self.fields.get(name)
        if layer is not None and isinstance(value, list) and layer < len(value):
            value = value[layer]
        if not value and not isinstance(value, str):
            return None
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self._unusable(name, value)
        return value

    def _unusable(self, name: str, value: object) -> ModelError:
        reason = f"it lacks {name}" if value is None else f"{name} is {value!r}"
        return ModelError(f"{self._directory}: no usable config.json ({reason})")


def _layer_types(fields: Mapping[str, Any]) -> list[str]:
    """The kind of each layer under any name; empty if the fields do not have it."""
    values = (fields.get(name) for name in LAYER_TYPES)
    return next((list(_expanded(value)) for value in values if value and isinstance(value, list | tuple)), [])


def _expanded(kinds: Sequence[Any]) -> Iterator[str]:
    """The kinds of layers, also from GPT-Neo's `[[["global", "local"], 12]]`."""
    for kind in kinds:
        if isinstance(kind, str):
            yield kind
        elif isinstance(kind, list | tuple) and len(kind) == 2 and isinstance(kind[1], int):
            yield from [name for name in kind[0] if isinstance(name, str)] * kind[1]
