"""What export must know about a model family: one table, keyed by the `model_type` of `config.json`.

transformers builds and computes the model. A family needs a row here only if a general rule does not fit it.

- fuse.attention.py cannot fuse its attention: Circle's ATTENTION has no operand for a part of it.
- `o2o.attention` does not compute its attention. Only eager attention exports.

A family without a row follows the general rules. `family_of` adds what `config.json` alone decides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from export.config import CheckpointConfig


@dataclass(frozen=True)
class Family:
    """The rules of one model family.

    Attributes:
        unfusable_reason: Why fuse.attention.py cannot fuse its attention, as a predicate; empty if it can.
        eager_only_reason: Why only eager attention computes it, as a predicate; empty if `grouped` and
            `flash` do.
    """

    unfusable_reason: str = ""
    eager_only_reason: str = ""

    @property
    def fuses(self) -> bool:
        return not self.unfusable_reason


BIASES = "has biases in its attention"
QK_NORMS = "normalizes queries and keys"
PARTIAL_ROTATION = "rotates a part of each head"
INTERLEAVED_ROTATION = "rotates neighboring elements of each head"
SOFTCAP = "caps its attention scores"

FAMILIES: dict[str, Family] = {
    "cohere": Family(INTERLEAVED_ROTATION),
    "cohere2": Family(INTERLEAVED_ROTATION),
    "ernie4_5": Family(INTERLEAVED_ROTATION),
    "exaone4": Family(QK_NORMS),
    "gemma3": Family(QK_NORMS),
    "gemma3_text": Family(QK_NORMS),
    "glm": Family(PARTIAL_ROTATION),
    "glm4": Family(PARTIAL_ROTATION),
    "gpt2": Family(BIASES),
    "gpt_neox": Family(BIASES),
    "gpt_oss": Family("has attention sinks", eager_only_reason="has attention sinks"),
    "gptj": Family(INTERLEAVED_ROTATION),
    "hunyuan_v1_dense": Family(QK_NORMS),
    "nemotron": Family(PARTIAL_ROTATION),
    "olmo2": Family(QK_NORMS),
    "olmo3": Family(QK_NORMS),
    "opt": Family(BIASES),
    "phi": Family(BIASES),
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
