"""What export must know about a model family: one table, keyed by the `model_type` of `config.json`.

transformers builds and computes the model. A family needs a row here only if a general rule does not fit it.

- fuse.attention.py cannot fuse its attention: Circle's ATTENTION has no operand for a part of it.
- `o2o.attention` does not compute its attention. Only eager attention exports.

A family without a row follows the general rules. `family_of` adds what `config.json` alone decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from export.config import CheckpointConfig


@dataclass(frozen=True)
class Family:
    """The rules of one model family.

    Attributes:
        unfusable_reason: Why fuse.attention.py cannot fuse its attention, as a predicate; empty if it can.
        eager_only_reason: Why only eager attention computes it, as a predicate; empty if `grouped` and
            `flash` do.
        refusal: Why the family cannot be converted, as a predicate; empty if it can, or if fields of
            config.json say it (`export.preflight`).
        positions: How positions enter, if config.json does not say it: `alibi`, `learned`, `sinusoidal`;
            empty for rotary positions.
        unscaled: Whether scores are q k' without a factor.
        parallel: Whether attention and MLP read the same input; None if a field of config.json says it.
    """

    unfusable_reason: str = ""
    eager_only_reason: str = ""
    refusal: str = ""
    positions: str = ""
    unscaled: bool = False
    parallel: bool | None = None

    def parallel_residual(self, fields: Mapping[str, Any]) -> bool:
        """Check whether attention and MLP are computed side by side.

        Args:
            fields: The fields of config.json.

        Returns:
            `parallel`, or what `use_parallel_residual` or `parallel_attn` says.
        """
        if self.parallel is not None:
            return self.parallel
        return any(fields.get(name) is True for name in ("use_parallel_residual", "parallel_attn"))

    @property
    def fuses(self) -> bool:
        return not self.unfusable_reason


EXPERTS = "is a mixture of experts"
LARGER_HEADS = "has larger heads in some layers"
POSITIONS_FROM_PADDING = "counts positions from its padding token"

BIASES = "has biases in its attention"
QK_NORMS = "normalizes queries and keys"
PARTIAL_ROTATION = "rotates a part of each head"
INTERLEAVED_ROTATION = "rotates neighboring elements of each head"
SOFTCAP = "caps its attention scores"

FAMILIES: dict[str, Family] = {
    "blt": Family(refusal="reads bytes in patches of varying length"),
    "camembert": Family(refusal=POSITIONS_FROM_PADDING),
    "cpmant": Family(refusal="adds learned distances to its attention scores"),
    "dbrx": Family(refusal=EXPERTS),
    "data2vec-text": Family(refusal=POSITIONS_FROM_PADDING),
    "dots1": Family(refusal=EXPERTS),
    "gemma4_text": Family(refusal=LARGER_HEADS),
    "gemma4_unified_text": Family(refusal=LARGER_HEADS),
    "hrm_text": Family(refusal="reads a prompt in both directions"),
    "hunyuan_v1_moe": Family(refusal=EXPERTS),
    "openai-gpt": Family(refusal="computes without a KV cache in transformers"),
    "reformer": Family(refusal="hashes its attention"),
    "roberta": Family(refusal=POSITIONS_FROM_PADDING),
    "roberta-prelayernorm": Family(refusal=POSITIONS_FROM_PADDING),
    "roformer": Family(refusal="computes positions without position_ids in transformers"),
    "xlm": Family(refusal="computes with caches of its own in transformers"),
    "xlm-roberta": Family(refusal=POSITIONS_FROM_PADDING),
    "xlm-roberta-xl": Family(refusal=POSITIONS_FROM_PADDING),
    "xlnet": Family(refusal="attends in two streams, without a KV cache"),
    "xlstm": Family(refusal="is recurrent"),
    "xmod": Family(refusal=POSITIONS_FROM_PADDING),
    "cohere": Family(INTERLEAVED_ROTATION, parallel=True),
    "cohere2": Family(INTERLEAVED_ROTATION, parallel=True),
    "ernie4_5": Family(INTERLEAVED_ROTATION),
    "exaone4": Family(QK_NORMS),
    "gemma3": Family(QK_NORMS),
    "gemma3_text": Family(QK_NORMS),
    "glm": Family(PARTIAL_ROTATION),
    "glm4": Family(PARTIAL_ROTATION),
    "biogpt": Family(BIASES, positions="learned"),
    "bloom": Family(positions="alibi"),
    "codegen": Family(INTERLEAVED_ROTATION, parallel=True),
    "ctrl": Family(BIASES, positions="sinusoidal"),
    "gpt2": Family(BIASES, positions="learned"),
    "gpt_bigcode": Family(BIASES, positions="learned"),
    "gpt_neo": Family(positions="learned", unscaled=True),
    "gpt_neox": Family(BIASES),
    "gpt_oss": Family("has attention sinks", eager_only_reason="has attention sinks"),
    "gptj": Family(INTERLEAVED_ROTATION, parallel=True),
    "hunyuan_v1_dense": Family(QK_NORMS),
    "mpt": Family(positions="alibi"),
    "nemotron": Family(PARTIAL_ROTATION),
    "olmo2": Family(QK_NORMS),
    "olmo3": Family(QK_NORMS),
    "opt": Family(BIASES, positions="learned"),
    "phi": Family(BIASES, parallel=True),
    "phi3": Family(PARTIAL_ROTATION),
    "qwen2": Family(BIASES),
    "qwen2_moe": Family(BIASES),
    "qwen3": Family(QK_NORMS),
    "qwen3_moe": Family(QK_NORMS),
    "stablelm": Family(PARTIAL_ROTATION),
    "starcoder2": Family(BIASES),
}


def family_of(config: CheckpointConfig) -> Family:
    """Return the rules for a model.

    Args:
        config: The model's `config.json`, whose fields may add to its family's row.

    Returns:
        The row of its `model_type`, or the general rules.
    """
    family = FAMILIES.get(config.model_type, Family())
    if config.attention_softcap:
        return replace(family, unfusable_reason=SOFTCAP, eager_only_reason=SOFTCAP)
    if family.fuses and config.fields.get("attention_bias"):
        return replace(family, unfusable_reason=BIASES)
    scale = config.fields.get("attention_multiplier")  # Granite
    if family.fuses and scale and abs(scale - config.head_dim**-0.5) > 1e-6 * scale:
        return replace(
            family, unfusable_reason="scales its attention scores by another factor than 1/sqrt(H)"
        )
    return family
