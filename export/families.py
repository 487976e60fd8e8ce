"""What export must know about a model family: one table, keyed by the `model_type` of `config.json`.

transformers builds and computes the model. A row holds what no field of `config.json` says: a reason to
refuse the family, or a fact for the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from export.config import CheckpointConfig


@dataclass(frozen=True)
class Family:
    """The rules of one model family.

    Attributes:
        refusal: Why the family cannot be converted, as a predicate; empty if it can, or if fields of
            config.json say it (`export.preflight`).
        positions: How positions enter, if config.json does not say it: `alibi`, `learned`, `sinusoidal`;
            empty for rotary positions.
        unscaled: Whether scores are q k' without a factor.
        attention: What Circle's ATTENTION has no operand for, if config.json does not say it; a noun.
        parallel: Whether attention and MLP read the same input; None if a field of config.json says it.
    """

    refusal: str = ""
    positions: str = ""
    unscaled: bool = False
    attention: str = ""
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


EXPERTS = "is a mixture of experts"
LARGER_HEADS = "has larger heads in some layers"
POSITIONS_FROM_PADDING = "counts positions from its padding token"


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
    "cohere": Family(parallel=True),
    "cohere2": Family(parallel=True),
    "biogpt": Family(positions="learned"),
    "bloom": Family(positions="alibi"),
    "codegen": Family(parallel=True),
    "ctrl": Family(positions="sinusoidal"),
    "diffllama": Family(attention="a difference of two attentions"),
    "doge": Family(attention="a mask that is computed from values"),
    "gpt2": Family(positions="learned"),
    "gpt_bigcode": Family(positions="learned"),
    "gpt_neo": Family(positions="learned", unscaled=True),
    "gptj": Family(parallel=True),
    "mpt": Family(positions="alibi"),
    "opt": Family(positions="learned"),
    "phi": Family(parallel=True),
    "xglm": Family(positions="sinusoidal"),
}


def family_of(config: CheckpointConfig) -> Family:
    """Return the rules for a model.

    Args:
        config: The model's `config.json`.

    Returns:
        The row of its `model_type`, or the general rules.
    """
    return FAMILIES.get(config.model_type, Family())
