"""Refusal of models that cannot be converted, from `config.json` alone: before torch, and before any file.

Facts decide, whatever the model's name is: a list of experts, a latent cache, a state-space layer, a window.
`export.families` has the few facts that no field says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from export.architectures import causal_class, causal_models, declaration, is_known, tasks_of
from export.config import LAYER_TYPES, CheckpointConfig
from export.families import family_of
from export.loading_flags import MODEL_FILE, defining_file, is_trusted, needs_code_reason
from o2o.cli.arguments import suggestion
from o2o.cli.text import counted, listed
from o2o.errors import ModelError

ROPES = frozenset({"default", "linear", "dynamic", "longrope", "llama3", "yarn", "mrope"})
"""Kinds of rotary position embeddings that are exported. `mrope` is `default` for texts."""
ATTENTIONS = frozenset(
    {"attention", "full_attention", "sliding_attention", "chunked_attention"} | {"global", "local"}
)
"""Kinds of layers that have ordinary keys and values."""

_EXPERTS = re.compile(r"^(moe_)?(n|num)_(routed_|local_)?experts$|^moe_num_experts$")
_RECURRENT = re.compile(
    r"^(mamba|ssm|linear_(num|key|value|conv))_|^(state_size|time_step_\w+|conv_kernel|conv_L_cache|lru_width)$"
)
_OTHER_INPUTS = re.compile(r"^(vision|audio|image|speech|vq)\w*_config$")
_HEADS = re.compile(
    r"For(CausalLM|ConditionalGeneration|VisualQuestionAnswering)$|LMHeadModel$|LMHead$|^((?!For).)*Model$"
)


def check_model(config: CheckpointConfig, directory: Path | str) -> None:
    """Refuse a model that cannot be converted.

    Args:
        config: The checkpoint's configuration.
        directory: The checkpoint's folder, for the message.

    Raises:
        ModelError: The model is no decoder-only language model with ordinary attention.
    """
    if reason := next(reasons(config), None):
        raise ModelError(f"{directory}: {reason}")


def reasons(config: CheckpointConfig) -> Iterator[str]:
    """List why a model cannot be converted.

    Args:
        config: The checkpoint's configuration.

    Yields:
        Each reason as a sentence without a full stop; the clearest first.
    """
    kind, fields = config.model_type, config.fields
    yield from _other_tasks(config)
    if method := _quantization(config):
        yield f"the weights are quantized ({method}): convert the original checkpoint or a GGUF file"
    if fields.get("kv_lora_rank"):
        yield (
            f"this {kind} model has multi-head latent attention (MLA): its cache holds no keys and values, "
            "which conversion does not support"
        )
    if other := sorted(set(config.layer_types) - ATTENTIONS):
        yield f"this {kind} model has layers of kind {listed(other, 3)}, which conversion does not support"
    if not any(map(fields.get, LAYER_TYPES)) and any(map(_RECURRENT.match, fields)):
        yield (
            f"this {kind} model has state-space or other recurrent layers, which conversion does not support"
        )
    if experts := _experts(config):
        yield (
            f"this {kind} model is a mixture of {counted(experts, 'expert')}, which conversion does not "
            "support"
        )
    if reason := family_of(config).refusal:
        yield f"this {kind} model {reason}, which conversion does not support"
    if fields.get("use_bidirectional_attention") in (True, "all") or fields.get("is_causal") is False:
        yield f"this {kind} model attends in both directions: conversion supports causal attention only"
    if fields.get("num_kv_shared_layers"):
        yield f"layers of this {kind} model share keys and values, which conversion does not support"
    if _varying_heads(fields) and defining_file(kind) is None:
        yield (
            f"the layers of this {kind} model differ in the number or size of their heads, which conversion "
            "does not support"
        )
    for rope in config.ropes:
        if rope.kind not in ROPES:
            yield (
                f"this {kind} model has rotary embeddings of type {rope.kind}, which conversion does not "
                f"support: it supports {listed(sorted(ROPES - {'mrope'}))}"
            )
        elif rope.missing:
            yield (
                f"this {kind} model has rotary embeddings of type {rope.kind} without "
                f"{listed(rope.missing)}, which config.json must say"
            )
    yield from _missing_facts(config)


def _other_tasks(config: CheckpointConfig) -> Iterator[str]:
    """Why a model is no decoder-only language model."""
    kind, tasks = config.model_type, tasks_of(config.model_type)
    known = causal_models()
    fields = config.fields
    if fields.get("is_encoder_decoder"):
        yield f"this {kind} model is an encoder-decoder: conversion supports decoder-only language models"
    elif known and kind not in known:
        if defining_file(kind) is not None:
            return
        if not config.needs_code:
            yield _no_text_part(config) if config.is_text_part else _not_causal(kind, tasks)
        elif not is_trusted():
            yield needs_code_reason(kind)
    elif "decoder_layers" in fields:
        yield f"this {kind} model is the decoder of an encoder-decoder, which needs an encoder's output"
    elif fields.get("is_decoder") is not True and ("encoder" in tasks or _may_be_encoder(kind)):
        yield f"this {kind} model is an encoder, which predicts no next token: is_decoder is not true"
    elif any(map(_OTHER_INPUTS.match, fields)):
        yield f"this {kind} model reads more than text, and has no separate language model (text_config)"
    heads = config.architectures
    if heads and not any(_HEADS.search(name) or name == causal_class(kind) for name in heads):
        yield f"the checkpoint is a {listed(heads)}: a language model ends in ForCausalLM or LMHeadModel"


def _may_be_encoder(kind: str) -> bool:
    """Whether a family's `is_decoder` makes a decoder of an encoder."""
    return {"is_decoder", "add_cross_attention"} <= declaration(kind).defaults.keys()


def _no_text_part(config: CheckpointConfig) -> str:
    """Why the text part of a multimodal model is no model of its own."""
    if config.fields.get("cross_attention_layers"):
        return (
            f"this {config.whole_type} model has layers that attend to images, which conversion does not "
            "support"
        )
    return (
        f"transformers has no language model of its own for the text part ({config.model_type}) of this "
        f"{config.whole_type} model, so it cannot be converted"
    )


def _not_causal(kind: str, tasks: frozenset[str]) -> str:
    for task, noun in (
        ("encoder-decoder", "an encoder-decoder: conversion supports decoder-only language models"),
        ("encoder", "an encoder, which predicts no next token"),
        ("multimodal", "a multimodal model whose language model is no separate part (text_config)"),
        ("vision", "a vision model: conversion supports language models"),
        ("audio", "an audio model: conversion supports language models"),
    ):
        if task in tasks:
            return f"this {kind} model is {noun}"
    if is_known(kind):
        return f"a {kind} model is no causal language model: conversion supports decoder-only language models"
    return (
        "the installed transformers has no causal language model of type "
        f"{kind!r}{suggestion(kind, causal_models())}; {MODEL_FILE} FILE converts a model of your own"
    )


def _quantization(config: CheckpointConfig) -> str:
    """The method that quantized the weights; empty for none."""
    settings = config.fields.get("quantization_config") or config.fields.get("compression_config")
    if not isinstance(settings, dict):
        return ""
    return str(settings.get("quant_method") or "quantization_config in config.json")


def _experts(config: CheckpointConfig) -> int:
    """The number of experts of a layer; 0 for an ordinary MLP.

    One expert counts where transformers' class has experts, as Mixtral's: its MLP has a router, too.
    """
    fields = config.fields
    if fields.get("is_moe") is False or fields.get("enable_moe_block") is False:
        return 0
    ffn, declared = fields.get("ffn_config"), declaration(config.model_type).defaults
    named = [*fields.items(), *(ffn.items() if isinstance(ffn, dict) else ())]
    counts = [0]
    for name, value in named:
        if _EXPERTS.match(name):
            count = max(value) if isinstance(value, list) and value else value
            if isinstance(count, int) and (count > 1 or name in declared):
                counts.append(count)
    return max(counts)


def _varying_heads(fields: dict[str, Any]) -> bool:
    """Whether the file gives layers different heads."""
    own = fields.get("per_layer_config")
    if isinstance(own, dict) and any("head" in name for part in own.values() for name in part):
        return True
    lists = (value for name, value in fields.items() if "head" in name and isinstance(value, list | tuple))
    return any(len({str(item) for item in value}) > 1 for value in lists)


def _missing_facts(config: CheckpointConfig) -> Iterator[str]:
    """Facts that conversion needs and the file does not say."""
    try:
        _ = config.layers, config.vocab_size
        layers = config.attention_layers
    except ModelError as error:
        reason = str(error).partition("no usable config.json (")[2].removesuffix(")")
        if "num_attention_heads" in reason:
            yield (
                f"this {config.model_type} model has no attention heads, so no keys and values to cache "
                f"(config.json: {reason})"
            )
        else:
            yield f"no usable config.json ({reason})"
    else:
        for N, K, _ in layers:
            if N % K:
                yield f"no usable config.json ({N} query heads cannot share {K} key/value heads evenly)"
                return
