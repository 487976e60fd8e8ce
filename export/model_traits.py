"""What is special about a checkpoint's model, from `config.json` and the names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import groupby

from export.architectures import declaration
from export.config import CheckpointConfig
from export.families import family_of
from o2o.cli.text import counted, listed

_ATTENTION = r"(q|k|v|c_attn|qkv|query_key_value|q_proj|k_proj|v_proj|qkv_proj|Wqkv|W_pack|query|key|value)"
ATTENTION_BIAS = re.compile(rf"(att\w*|attn|self)\.(attention\.)?{_ATTENTION}\.bias$")
QK_NORM = re.compile(r"\.(q|k|query|key)_?(layer)?_?(norm|layernorm|ln)(\.norms\.\d+)?\.weight$")
LEARNED_POSITIONS = re.compile(r"(^|\.)(wpe|embed_positions|position_embeddings)\.weight$")
NORM_BIAS = re.compile(r"(norm|ln_?\w*)\.bias$")
GATED_MLP = re.compile(r"\.(gate_proj|gate_up_proj)\.weight$|\.mlp\.(w1|fc_1)\.weight$")
HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output)\.weight$")


def traits(config: CheckpointConfig, tensors: Collection[str]) -> list[str]:
    """Describe a model's architecture.

    Args:
        config: The checkpoint's configuration.
        tensors: The names of its tensors.

    Returns:
        One phrase for each part that differs between families.
    """
    if config.is_authored:  # its names mean whatever its file says
        return [next(_attention(config, ())), "defined by a Python file"]
    return [
        *_attention(config, tensors),
        *_positions(config, tensors),
        *_layers(config, tensors),
    ]


def attention_traits(
    config: CheckpointConfig, tensors: Collection[str], context: int | None = None
) -> list[str]:
    """List what Circle's ATTENTION has no operand for.

    Args:
        config: The checkpoint's configuration.
        tensors: The names of its tensors.
        context: S, tokens of the package's context; None for one that no window limits.

    Returns:
        Nouns; empty if Circle's ATTENTION computes the model's attention.
    """
    family = family_of(config)
    parts = {
        "biases": any(map(ATTENTION_BIAS.search, tensors)),
        "norms of queries and keys": _normalizes_queries(config, tensors),
        "clipping of queries, keys and values": bool(config.fields.get("clip_qkv")),
        "a cap of scores": config.attention_softcap is not None,
        "a window": (config.sliding_window or context or 0) < (context or 0),
        "another scale": _scale(config) != "",
        "ALiBi": config.alibi or family.positions == "alibi",
        "no rotation": _learned(config, tensors),
        "partial rotation": _partial_rotation(config) is not None,
        "interleaved rotation": declaration(config.model_type).interleaved_rotation,
        "queries scaled by position": "llama_4_scaling_beta" in (config.fields.get("rope_parameters") or {}),
        family.attention: family.attention != "",
    }
    return [name for name, there in parts.items() if there]


def _attention(config: CheckpointConfig, tensors: Collection[str]) -> Iterator[str]:
    layers = config.attention_layers
    N, K, H = (_range(sizes) for sizes in zip(*layers, strict=True))
    if all(layer.kv_heads == layer.heads for layer in layers):
        yield f"multi-head attention ({N} {'head' if N == '1' else 'heads'} of {H})"
    elif K == "1":
        yield f"multi-query attention ({N} query heads of {H})"
    else:
        yield f"grouped-query attention ({N} query heads of {H} over {K})"
    if any(map(ATTENTION_BIAS.search, tensors)):
        yield "biases of queries, keys, values"
    if _normalizes_queries(config, tensors):
        yield "norms of queries and keys"
    if cap := config.attention_softcap:
        yield f"scores capped at {cap:g}"
    if scale := _scale(config):
        yield scale
    if window := config.sliding_window:
        yield from _windows(config, window)


def _windows(config: CheckpointConfig, window: int) -> Iterator[str]:
    """Which layers see a window, and which see all tokens."""
    layers = range(config.layers)
    windowed = [layer for layer in layers if layer in config.windowed_layers]
    sizes = f"{'chunks' if 'chunked_attention' in config.layer_types else 'a window'} of {window:,} tokens"
    if len(windowed) == len(layers):
        yield f"{sizes} in {counted(len(layers), 'layer')}"
        return
    yield f"{sizes} in {_layer_numbers(windowed)}"
    yield f"all tokens in {_layer_numbers([layer for layer in layers if layer not in windowed])}"


def _layer_numbers(layers: Sequence[int]) -> str:
    """Layers in words, such as `layers 0-4, 6-10, and 3 more`."""
    runs = [
        [layer for _, layer in run] for _, run in groupby(enumerate(layers), lambda pair: pair[1] - pair[0])
    ]
    names = [f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs]
    return f"{'layer' if len(layers) == 1 else 'layers'} {listed(names, 6)}"


def _range(sizes: Iterable[int]) -> str:
    """`8`, or `8 to 16` for sizes that differ."""
    low, high = min(sizes := [*sizes]), max(sizes)
    return str(low) if low == high else f"{low} to {high}"


def _positions(config: CheckpointConfig, tensors: Collection[str]) -> Iterator[str]:
    family = family_of(config)
    if config.alibi or family.positions == "alibi":
        yield "ALiBi positions"
    elif _learned(config, tensors):
        yield f"learned positions ({config.positions or 0:,})"
    elif family.positions:
        yield f"{family.positions} positions"
    else:
        kinds = dict.fromkeys(
            rope.kind if rope.factor == 1 else f"{rope.kind} by {rope.factor:g}" for rope in config.ropes
        )
        part = _partial_rotation(config)
        words = ["rotary positions"]
        if set(kinds) not in (set(), {"default"}):
            words.append(f"({', '.join(kinds)})")
        if part is not None:
            words.append(f"in {part:g} of each head")
        if declaration(config.model_type).interleaved_rotation:
            words.append("of neighboring elements")
        yield " ".join(words)
    without = config.fields.get("no_rope_layers")
    if isinstance(without, list) and 0 in without:
        yield f"{counted(without.count(0), 'layer')} without positions"


def _layers(config: CheckpointConfig, tensors: Collection[str]) -> Iterator[str]:
    fields = config.fields
    layer_norm = any(map(NORM_BIAS.search, tensors)) or "rms_norm_eps" not in fields
    yield "LayerNorm" if layer_norm else "RMSNorm"
    gate = "gated " * any(map(GATED_MLP.search, tensors))
    if config.activation:
        yield f"{gate}{config.activation} activation"
    if family_of(config).parallel_residual(fields):
        yield "attention and MLP in parallel"
    if cap := fields.get("final_logit_softcapping"):
        yield f"logits capped at {cap:g}"
    if (tensors and not any(map(HEAD.search, tensors))) or fields.get("tie_word_embeddings") is True:
        yield "tied embeddings"


def _normalizes_queries(config: CheckpointConfig, tensors: Collection[str]) -> bool:
    return any(map(QK_NORM.search, tensors)) or bool(config.fields.get("use_qk_norm"))


def _learned(config: CheckpointConfig, tensors: Collection[str]) -> bool:
    return family_of(config).positions == "learned" or any(map(LEARNED_POSITIONS.search, tensors))


def _scale(config: CheckpointConfig) -> str:
    """The factor of the scores, if it is not 1/sqrt(H)."""
    fields, usual = config.fields, config.head_dim**-0.5
    if isinstance(scalar := fields.get("query_pre_attn_scalar"), int | float) and scalar > 0:
        scale = scalar**-0.5
    elif isinstance(multiplier := fields.get("attention_multiplier"), int | float):
        scale = float(multiplier)
    else:
        if fields.get("scale_attn_by_inverse_layer_idx") is True:
            return "scores scaled by layer"
        return "scores that are not scaled" if family_of(config).unscaled else ""
    return f"scores scaled by {scale:.4g}" if abs(scale - usual) > 1e-6 * usual else ""


def _partial_rotation(config: CheckpointConfig) -> float | None:
    """The part of each head that is rotated; None for all."""
    fields = config.fields
    rope = fields.get("rope_parameters")
    settings = [fields, rope if isinstance(rope, dict) else {}]
    part = next(
        (
            value
            for part in settings
            for name in ("partial_rotary_factor", "rotary_pct", "rope_pct")
            if isinstance(value := part.get(name), int | float)
        ),
        declaration(config.model_type).rotated_part,
    )
    if isinstance(dim := fields.get("rotary_dim"), int):
        part = dim / config.head_dim
    return float(part) if part is not None and part < 1 else None


def targets(config: CheckpointConfig, tensors: Collection[str], context: int | None = None) -> Sequence[str]:
    """Describe what each engine does with the model's attention.

    Args:
        config: The checkpoint's configuration.
        tensors: The names of its tensors.
        context: See `attention_traits`.

    Returns:
        One line for each engine.
    """
    special = attention_traits(config, tensors, context)
    one = "Circle's ATTENTION" if not special else "o2o.attention"
    if config.is_authored:
        one, special = "o2o.attention, or Circle's ATTENTION if its operands allow it", []
    why = f" (ATTENTION has no operand for {', '.join(special)})" if special else ""
    return (
        f"Circle        each layer's attention is one operator, {one}{why}",
        "LiteRT        matrix products and SOFTMAX of XNNPACK, from .circle and .tflite",
        "ONNX Runtime  GroupQueryAttention, or MatMul and Softmax; from .circle and .onnx",
        "onert         matrix products and SOFTMAX, token by token; from .circle",
    )
