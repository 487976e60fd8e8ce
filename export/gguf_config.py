"""The configuration of a GGUF file: its metadata, in the words of transformers' `config.json`.

transformers' own tables (`GGUF_CONFIG_MAPPING`) rename the keys. What they leave out and the model needs is
added here, or refused by name: the size of heads, scaled rotary embeddings, windows, caps, biases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from transformers import AutoConfig
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from o2o.errors import ModelError
from o2o.weights.gguf_file import GgufFile

COMMON = GGUF_CONFIG_MAPPING["qwen2"]
"""The keys that most architectures have."""

MODEL_TYPES = {
    **{name: name for name in ("bloom", "falcon", "gemma2", "gpt2", "llama", "nemotron", "phi3", "qwen2")},
    **{
        name: name
        for name in ("gemma", "granite", "olmo", "olmo2", "qwen3", "smollm3", "stablelm", "starcoder2")
    },
    "arcee": "arcee",
    "cohere2": "cohere2",
    "command-r": "cohere",
    "gemma3": "gemma3_text",
    "gptneox": "gpt_neox",
    "mistral": "mistral",
    "mpt": "mpt",
    "phi2": "phi",
    "qwen2vl": "qwen2",
    "qwen3vl": "qwen3",
    "seed_oss": "seed_oss",
    "starcoder": "gpt_bigcode",
}
"""{llama.cpp's name of an architecture: transformers' model type}."""

TIED = ("bloom", "falcon")
"""Architectures that write `output.weight` although it is tied, as transformers' reader knows."""

ONLY_OF = {
    "attention.causal": (),
    "attention.clamp_kqv": ("mpt", "olmo"),
    "attention.max_alibi_bias": ("bloom", "mpt"),
    "attention.scale": ("granite",),
    "attn_logit_softcapping": ("gemma2", "gemma3"),
    "embedding_scale": ("granite",),
    "expert_count": (),
    "final_logit_softcapping": ("gemma2", "gemma3"),
    "logit_scale": ("cohere2", "command-r", "granite"),
    "residual_scale": ("granite",),
}
"""{key that changes what a model computes: the architectures for which it is honoured}."""
HARMLESS = {"attention.causal": True, "expert_count": 0}
"""Values that change nothing; 0 and an absent key do not either."""

EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
SPECIAL_TOKENS = {"bos": "bos", "eos": "eos", "padding": "pad"}
ROTARY_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that belong to the configuration: they divide the rotary frequencies."""

# Keys of scaled rotary embeddings that do not change the numbers.
_SCALING_IGNORED = {"finetuned", "original_context_length", "type", "factor"}
_YARN = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow", "attn_factor": "attention_factor"}
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_LENGTH = 1.0, 4.0, 8192


def config_of(file: GgufFile) -> dict[str, Any]:
    """Derive the configuration of a GGUF file's model.

    Args:
        file: The file.

    Returns:
        The fields of `config.json`.

    Raises:
        ModelError: The architecture is unknown, or the file has a setting that transformers' model does not
            have.
    """
    architecture = file.architecture
    if architecture not in MODEL_TYPES:
        raise ModelError(
            f"{file.path} has the architecture {architecture!r}, which is not supported: use one of "
            f"{', '.join(sorted(MODEL_TYPES))}"
        )
    for key, architectures in ONLY_OF.items():
        value = file.get(key)
        if value is not None and architecture not in architectures and value != HARMLESS.get(key, 0):
            what = " (a mixture of experts)" if key == "expert_count" else ""
            raise ModelError(
                f"{file.path} has {architecture}.{key} {value}{what}, which is not supported for "
                f"{architecture}"
            )
    model_type = MODEL_TYPES[
        architecture
    ]  # llama.cpp calls Mistral's first models `llama`: they compute the same
    defaults = AutoConfig.for_model(model_type).to_dict()
    fields: dict[str, Any] = {"model_type": model_type}
    fields["architectures"] = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]]
    for key, name in GGUF_CONFIG_MAPPING.get(architecture, COMMON).items():
        if name is not None and (value := _scalar(file, key)) is not None:
            fields[name] = value
    fields["vocab_size"] = _rows(file, "token_embd.weight")
    fields["tie_word_embeddings"] = "output.weight" not in file.tensors or architecture in TIED
    if (epsilon := _epsilon(file)) is not None:
        fields |= {name: epsilon for name in EPSILONS if name in defaults}
    fields |= _special_tokens(file)
    fields |= _biases(file, defaults)
    fields |= _family_fields(file, fields)
    fields |= _head_fields(file, fields, defaults)
    fields |= _rotary_fields(file, fields, defaults)
    window = _scalar(file, "attention.sliding_window")
    if window is not None:
        if "sliding_window" not in defaults or "use_sliding_window" in defaults:
            raise ModelError(
                f"{file.path} has {architecture}.attention.sliding_window {window}, which transformers' "
                f"{model_type} does not have"
            )
        fields["sliding_window"] = window
    elif model_type == "mistral":
        fields["sliding_window"] = None  # the class has the window of the first Mistral
    return fields


def generation_config_of(file: GgufFile) -> dict[str, Any]:
    """Derive the generation settings of a GGUF file: the tokens that begin and end a text.

    Args:
        file: The file.

    Returns:
        The fields of `generation_config.json`.
    """
    tokens = {name: value for name, value in _special_tokens(file).items() if value is not None}
    eos = [file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    different = list(dict.fromkeys(token for token in eos if token is not None))
    if len(different) > 1:
        tokens["eos_token_id"] = different
    return tokens


def _scalar(file: GgufFile, key: str) -> Any:
    """A metadata value; the only one of all layers where the file has one for each."""
    value = file.get(key)
    if isinstance(value, list):
        if len(set(value)) > 1:
            raise ModelError(f"{file.path}: {file.architecture}.{key} differs between layers: {value[:4]}...")
        return value[0] if value else None
    return value


def _rows(file: GgufFile, name: str) -> int:
    if name not in file.tensors:
        raise ModelError(f"{file.path} lacks the tensor {name}")
    return file.tensors[name].shape[0]


def _epsilon(file: GgufFile) -> float | None:
    for key in ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"):
        if (value := _scalar(file, key)) is not None:
            return float(value)
    return None


def _special_tokens(file: GgufFile) -> dict[str, Any]:
    return {
        f"{ours}_token_id": file.metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        for theirs, ours in SPECIAL_TOKENS.items()
    }


def _biases(file: GgufFile, defaults: Mapping[str, Any]) -> dict[str, bool]:
    """Switches for biases, by the tensors that the file has."""
    tensors = {
        "attention_bias": ("blk.0.attn_q.bias", "blk.0.attn_qkv.bias"),
        "mlp_bias": ("blk.0.ffn_up.bias",),
        "use_qkv_bias": ("blk.0.attn_q.bias",),
        "use_bias": ("blk.0.attn_q.bias", "blk.0.ffn_up.bias"),
        "qk_layernorm": ("blk.0.attn_q_norm.weight",),
        "use_qk_norm": ("blk.0.attn_q_norm.weight",),
    }
    return {
        name: any(one in file.tensors for one in names) for name, names in tensors.items() if name in defaults
    }


def _family_fields(file: GgufFile, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of single architectures, as llama.cpp's converter writes them."""
    get = file.get
    match file.architecture:
        case "bloom":
            return {"n_positions": get("context_length")}
        case "gpt2":
            return {"n_positions": _rows(file, "position_embd.weight"), "n_inner": get("feed_forward_length")}
        case "falcon":
            heads, width = _scalar(file, "attention.head_count_kv") or 1, get("feed_forward_length")
            new = "blk.0.attn_norm_2.weight" in file.tensors or heads > 1
            grouped = {"new_decoder_architecture": new, "num_kv_heads": heads, "multi_query": True}
            norms = 2 if "blk.0.attn_norm_2.weight" in file.tensors else 1
            return {**grouped, "num_ln_in_parallel_attn": norms if new else None, "ffn_hidden_size": width}
        case "gemma" | "phi2" | "gptneox":
            return {"hidden_act": "gelu_new"} if file.architecture == "phi2" else {}
        case "gemma2" | "gemma3":
            large = fields["num_hidden_layers"] == (46 if file.architecture == "gemma2" else 62)
            head = get("attention.key_length") or fields["hidden_size"] // fields["num_attention_heads"]
            scalar = fields["hidden_size"] // fields["num_attention_heads"] if large else head
            caps = {
                name: get(name) for name in ("attn_logit_softcapping", "final_logit_softcapping") if get(name)
            }
            return {"query_pre_attn_scalar": scalar, "head_dim": head, **caps, **_gemma3_windows(file)}
        case "stablelm":
            return {"use_parallel_residual": "blk.0.ffn_norm.weight" not in file.tensors}
        case "granite":
            names = {
                "attention.scale": "attention_multiplier",
                "embedding_scale": "embedding_multiplier",
                "residual_scale": "residual_multiplier",
                "logit_scale": "logits_scaling",
            }
            return {ours: get(theirs) for theirs, ours in names.items() if get(theirs)}
        case "command-r" | "cohere2":
            return {"logit_scale": get("logit_scale", 1.0)}
        case "mpt":
            alibi = {"alibi_bias_max": int(get("attention.max_alibi_bias", 8))}
            clip = {"clip_qkv": get("attention.clamp_kqv")}
            sizes = {"d_model": get("embedding_length"), "n_heads": _scalar(file, "attention.head_count")}
            ratio = {"expansion_ratio": get("feed_forward_length") // get("embedding_length")}
            length = {"n_layers": get("block_count"), "max_seq_len": get("context_length")}
            return {
                "attn_config": {"attn_type": "multihead_attention", **alibi, **clip},
                **sizes,
                **ratio,
                **length,
            }
        case "starcoder":
            multi = (_scalar(file, "attention.head_count_kv") or 1) == 1
            sizes = {"n_embd": get("embedding_length"), "n_head": _scalar(file, "attention.head_count")}
            length = {"n_layer": get("block_count"), "n_positions": _rows(file, "position_embd.weight")}
            return {"multi_query": multi, "n_inner": get("feed_forward_length"), **sizes, **length}
        case "olmo":
            return {"clip_qkv": get("attention.clamp_kqv")}
        case "gptneox":
            return {"use_parallel_residual": get("use_parallel_residual", True)}
        case "starcoder2":
            return {"tie_word_embeddings": "output.weight" not in file.tensors}
    return {}


def _gemma3_windows(file: GgufFile) -> dict[str, Any]:
    if file.architecture != "gemma3":
        return {}
    fields: dict[str, Any] = {"rope_local_base_freq": file.get("rope.freq_base_swa", 10000.0)}
    pattern = file.get("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        fields["layer_types"] = ["sliding_attention" if one else "full_attention" for one in pattern]
    elif pattern:
        fields["sliding_window_pattern"] = pattern
    return fields


def _head_fields(file: GgufFile, fields: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The size of a head, where it is not the model dimension over the heads."""
    heads = _scalar(file, "attention.head_count")
    if not heads:
        raise ModelError(f"{file.path} lacks {file.architecture}.attention.head_count")
    usual = int(file.get("embedding_length", 0)) // heads
    key, value = (_scalar(file, f"attention.{name}_length") or usual for name in ("key", "value"))
    if key != value:
        raise ModelError(
            f"{file.path} has keys of {key} and values of {value} numbers: export needs equal ones"
        )
    if "head_dim" in defaults:
        return {"head_dim": key}
    if key != usual:
        raise ModelError(
            f"{file.path} has heads of {key}, not {usual}, which {fields['model_type']} does not take"
        )
    return {}


def _rotary_fields(file: GgufFile, fields: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The base, the rotated part and the scaling of rotary embeddings."""
    result: dict[str, Any] = {}
    head = fields.get("head_dim") or file.get("embedding_length") // _scalar(file, "attention.head_count")
    rotated = _scalar(file, "rope.dimension_count") or head
    partial = {
        name: rotated / head for name in ("partial_rotary_factor", "rotary_pct") if _has(defaults, name)
    }
    if rotated != head and not partial:
        raise ModelError(
            f"{file.path} rotates {rotated} of {head} numbers of a head, which transformers' "
            f"{fields['model_type']} does not do"
        )
    result |= partial
    if base := _scalar(file, "rope.freq_base"):
        result["rope_theta"] = base
    if scaling := _scaling(file, rotated, float(base or 10000.0)):
        result["rope_scaling"] = scaling
        original = scaling.get("original_max_position_embeddings")
        if original and "original_max_position_embeddings" in defaults:  # Phi-3
            result["original_max_position_embeddings"] = original
    return result


def _has(defaults: Mapping[str, Any], name: str) -> bool:
    """Whether a family rotates a part of each head: the factor may be among its rotary parameters."""
    return name in defaults or name in (defaults.get("rope_parameters") or {})


def _scaling(file: GgufFile, rotated: int, base: float) -> dict[str, Any] | None:
    """`rope_scaling` of config.json."""
    prefix = f"{file.architecture}.rope.scaling."
    keys = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    kind, factor = keys.get("type", "none"), float(keys.get("factor", file.get("rope.scale_linear", 1.0)))
    original = keys.get("original_context_length")
    if "rope_factors_long.weight" in file.tensors:
        long, short = (
            file.tensors[f"rope_factors_{name}.weight"].read_float32() for name in ("long", "short")
        )
        fields = {"type": "longrope", "long_factor": long.tolist(), "short_factor": short.tolist()}
        return {**fields, "original_max_position_embeddings": original}
    if "rope_freqs.weight" in file.tensors:
        factors = file.tensors["rope_freqs.weight"].read_float32()
        if kind not in ("none", "llama3") and factor != 1:
            raise ModelError(
                f"{file.path} has rope_freqs.weight and {prefix}type {kind}: it is not clear which counts"
            )
        return _llama3(file, factors, rotated, base, original)
    if kind in ("none", "llama3") or (kind == "linear" and factor == 1):
        if kind == "linear" or factor == 1 or kind == "none":
            return {"rope_type": "linear", "factor": factor} if kind == "none" and factor != 1 else None
        raise ModelError(f"{file.path} has {prefix}type {kind}, but not rope_freqs.weight")
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    known = _SCALING_IGNORED | set(_YARN)
    if kind != "yarn" or (unknown := sorted(set(keys) - known)):
        name = f"{prefix}type {kind}" if kind != "yarn" else f"{prefix}{unknown[0]}"
        raise ModelError(f"{file.path} has {name}, which is not supported")
    context = file.get("context_length")
    fields = {ours: float(keys[theirs]) for theirs, ours in _YARN.items() if theirs in keys}
    length = int(original or context / factor)
    return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": length, **fields}


def _llama3(
    file: GgufFile, factors: np.ndarray, rotated: int, base: float, original: int | None
) -> dict[str, Any] | None:
    """The parameters of Llama 3's scaling that give these divisors of the frequencies.

    A divisor is 1 for short wavelengths and `factor` for long ones. Between them it is
    1 / ((1 - s) / factor + s). Here s = (length / wavelength - low) / (high - low), which is linear in
    1 / wavelength.
    """
    if len(factors) != rotated // 2:
        raise ModelError(f"{file.path}: rope_freqs.weight has {len(factors)} numbers, not {rotated // 2}")
    if np.all(factors == 1):
        return None
    if np.all(factors == factors[0]):
        return {"rope_type": "linear", "factor": float(factors[0])}
    factor = float(f"{factors.max():.6g}")  # without the noise of float32
    waves = 2 * math.pi * base ** (np.arange(0, rotated, 2) / rotated)
    candidates = [(_LLAMA3_LOW, _LLAMA3_HIGH, float(original or _LLAMA3_LENGTH))]
    between = (factors > 1.001) & (factors < 0.999 * factor)
    smooth = (1 / factors[between].astype(np.float64) - 1 / factor) / (1 - 1 / factor)
    if len(smooth):
        length = waves[between][0] * (smooth[0] * (_LLAMA3_HIGH - _LLAMA3_LOW) + _LLAMA3_LOW)
        candidates.append((_LLAMA3_LOW, _LLAMA3_HIGH, float(round(length))))
    if len(smooth) > 1:
        slope, offset = np.polyfit(1 / waves[between], smooth, 1)
        if offset < 0:
            high = 1 - 1 / float(offset)  # with low = 1: only the ratios of these three numbers count
            candidates.append((1.0, round(high, 4), round(float(slope) * (high - 1))))
    for low, high, length in candidates:
        smooth = np.clip((length / waves - low) / (high - low), 0, 1)
        if np.allclose(1 / ((1 - smooth) / factor + smooth), factors, rtol=1e-4):
            numbers = {"factor": factor, "low_freq_factor": low, "high_freq_factor": high}
            return {"rope_type": "llama3", **numbers, "original_max_position_embeddings": int(length)}
    raise ModelError(
        f"{file.path}: rope_freqs.weight is not a scaling of Llama 3, and export supports no other one"
    )
