"""Facts about a decoder that its graph need not hold: of `genai_config.json` or `config.json` beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GENAI_CONFIG = "genai_config.json"
_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num", *_HEADS)
_WIDTHS = ("hidden_size", "n_embd", "d_model", "n_embed")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a decoder; None for what no file says.

    Attributes:
        positions: The largest number of tokens of a text.
        heads: K, the number of key/value heads.
        head_dim: H.
    """

    positions: int | None = None
    heads: int | None = None
    head_dim: int | None = None


def read_model_config(model: Path) -> ModelConfig:
    """Read the facts beside a model, or in the folder above it.

    Args:
        model: The model's file.

    Returns:
        The facts. A file that is damaged says nothing.
    """
    for folder in (model.parent, model.absolute().parent.parent):
        if (config := _genai(folder)) is not None or (config := _hugging_face(folder)) is not None:
            return config
    return ModelConfig()


def genai_decoder(folder: Path) -> Mapping[str, Any]:
    """Return what `genai_config.json` says about the decoder.

    Args:
        folder: A folder.

    Returns:
        Its object `model.decoder`; empty without one.
    """
    decoder = _object(_object(_read(folder / GENAI_CONFIG)).get("model")).get("decoder")
    return _object(decoder)


def _genai(folder: Path) -> ModelConfig | None:
    if not (folder / GENAI_CONFIG).is_file():
        return None
    model, decoder = _object(_read(folder / GENAI_CONFIG).get("model")), genai_decoder(folder)
    return ModelConfig(
        _first(model, ["context_length"]),
        _first(decoder, ["num_key_value_heads", "num_attention_heads"]),
        _first(decoder, ["head_size"]),
    )


def _hugging_face(folder: Path) -> ModelConfig | None:
    if not (folder / "config.json").is_file():
        return None
    content = _read(folder / "config.json")
    config = {**content, **_object(content.get("text_config"))}
    heads, width = _first(config, _HEADS), _first(config, _WIDTHS)
    head_dim = _first(config, ["head_dim"]) or (width // heads if heads and width else None)
    return ModelConfig(_first(config, _POSITIONS), _first(config, _KV_HEADS), head_dim)


def _read(path: Path) -> dict[str, Any]:
    try:
        return _object(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError):
        return {}


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _first(config: Mapping[str, Any], names: Iterator[str] | tuple[str, ...] | list[str]) -> int | None:
    """The first of some keys that is a positive integer."""
    values = (config.get(name) for name in names)
    return next((value for value in values if type(value) is int and value > 0), None)
