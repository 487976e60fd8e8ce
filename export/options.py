"""The options of an export, and which of them exclude each other.

The checks need neither torch nor transformers, so they run first, before anything slow and before anything is
written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from export.config import CheckpointConfig
from o2o.errors import UsageError
from o2o.operators.core_attention import FlashBlockSizes

CacheForm = Literal["concat", "static"]
"""How decode updates its cache: `concat` appends the new row, `static` writes the row in place."""
WeightsForm = Literal["embed", "external"]
"""`embed`: the file holds the weights. `external`: the file refers to the checkpoint's tensors."""
WeightsType = Literal["float32", "float16"]
"""The dtype in which matrices are stored."""

ITEM_SIZE: dict[WeightsType, int] = {"float32": 4, "float16": 2}
"""Bytes of one number."""

GROUPED = "grouped"
"""Attention as one operator, `o2o.attention`; all scores at once."""
FLASH = "flash"
"""The same operator, computed in blocks; `flash:Q,KV` names the block sizes."""


def parse_attention(name: str) -> tuple[str, FlashBlockSizes | None]:
    """Split the name of an attention implementation into its kind and its blocks.

    Args:
        name: `grouped`, `flash`, `flash:Q,KV`, or a name that transformers knows.

    Returns:
        The kind, and the block sizes; None for sizes by the number of tokens.

    Raises:
        UsageError: The block sizes are malformed.
    """
    kind, _, sizes = name.partition(":")
    if name == "blocked":  # transformers' name of it (`export.attention`)
        return FLASH, None
    if kind != FLASH:
        return name, None
    try:
        return FLASH, FlashBlockSizes.parse(sizes) if sizes else None
    except ValueError as error:
        raise UsageError(f"--attn-implementation {name}: {error}") from None


@dataclass(frozen=True)
class ExportOptions:
    """What `python -m export` exports, and how.

    Attributes:
        max_length: S, tokens of context.
        prefill_lengths: T of each prefill; see `export.graph_specs.graph_specs`.
        cache: The form of decode's KV cache.
        attn_implementation: See `parse_attention`.
        weights: Whether files hold the weights.
        dtype: The dtype of large matrices.
        processes: Graphs to export at a time; None for as many as cores and memory allow.
        debug: Show the warnings of torch, transformers and TICO.
        strict: Refuse a checkpoint with tensors that the model does not use.
    """

    max_length: int = 1024
    prefill_lengths: Sequence[int] | None = None
    cache: CacheForm = "concat"
    attn_implementation: str = "eager"
    weights: WeightsForm = "external"
    dtype: WeightsType = "float32"
    processes: int | None = None
    debug: bool = False
    strict: bool = False

    def check(self, config: CheckpointConfig) -> None:
        """Refuse what cannot be exported.

        Args:
            config: The checkpoint's configuration.

        Raises:
            UsageError: Two options exclude each other, or the model excludes one.
        """
        check_attention(self.attn_implementation, self.cache)
        check_length(config, self.max_length)


def check_attention(attn_implementation: str, cache: CacheForm | None) -> None:
    """Refuse an attention implementation that the cache form excludes.

    Args:
        attn_implementation: See `parse_attention`.
        cache: The form of decode's KV cache; None if no decode graph is exported.

    Raises:
        UsageError: The combination cannot be exported.
    """
    kind, _ = parse_attention(attn_implementation)
    if kind not in (GROUPED, FLASH):
        return
    if cache == "concat":
        raise UsageError(f"--attn-implementation {attn_implementation} needs --cache static")


def check_length(config: CheckpointConfig, tokens: int, flag: str = "--max-length") -> None:
    """Raise UsageError if `tokens` exceeds the model's positions.

    Args:
        config: The checkpoint's configuration.
        tokens: S, tokens of context.
        flag: The flag that set it, for the message.

    Raises:
        UsageError: `tokens` is below 1, or exceeds the model's positions.
    """
    if tokens < 1:
        raise UsageError(f"{flag} {tokens}: use 1 or more")
    grows = any(rope.kind == "dynamic" for rope in config.ropes)
    if config.positions and tokens > config.positions and not grows:
        raise UsageError(
            f"{flag} {tokens}: this {config.model_type} model has {config.positions} positions: use "
            f"{config.positions} or less"
        )
