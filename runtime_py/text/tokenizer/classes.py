"""Tokenizer classes of transformers 5: the steps around a vocabulary that a class defines itself.

Most tokenizers work as `tokenizer.json` says. The classes of `CLASSES` do not. From the file, transformers
reads only their vocabulary, added tokens and post-processor. It defines the other steps in code, and so does
this module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

GENERIC = "TokenizersBackend"
"""The class that works as `tokenizer.json` says."""

Steps = Callable[[tokenizers.Tokenizer, Mapping[str, Any]], None]


@dataclass(frozen=True)
class TokenizerClass:
    """A class of transformers that defines its own steps.

    Attributes:
        steps: Sets the steps of a tokenizer from `tokenizer_config.json`.
        roles: Default token by role.
        add_bos_token: Whether it adds the begin token by default, whatever `tokenizer.json` says.
        own_post_processor: Whether it replaces the post-processor of `tokenizer.json`.
        plain_special_tokens: Whether it resets the flags of its special tokens.
    """

    steps: Steps
    roles: Mapping[str, str | None] = field(default_factory=dict)
    add_bos_token: bool = False
    own_post_processor: bool = False
    plain_special_tokens: bool = False


def _merge_pairs(tokenizer: tokenizers.Tokenizer, **settings: Any) -> None:
    """Set how the model merges pairs, whatever the file says. Unknown characters have no token by default."""
    defaults = {
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    for name, value in {**defaults, **settings}.items():
        setattr(tokenizer.model, name, value)


def _spaced(config: Mapping[str, Any]) -> bool:
    return config.get("add_prefix_space") is not False


def _metaspace(tokenizer: tokenizers.Tokenizer, scheme: str, strip: bool) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(content=" ", left=1)] if strip else steps)


def _llama(tokenizer: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    _merge_pairs(tokenizer, fuse_unk=True, byte_fallback=True)
    spaced = _spaced(config)
    scheme = ("always" if config.get("legacy") else "first") if spaced else "never"
    _metaspace(tokenizer, scheme, strip=spaced)


def _code_llama(tokenizer: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    _merge_pairs(tokenizer, fuse_unk=True, byte_fallback=True, unk_token=_unknown(config, "<unk>"))
    _metaspace(tokenizer, "first" if _spaced(config) else "never", strip=True)


def _gemma(tokenizer: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    _merge_pairs(tokenizer, fuse_unk=True, byte_fallback=True, unk_token=_unknown(config, "<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern=" ", behavior="merged_with_previous", invert=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps)


def _qwen(letters: str) -> Steps:
    pattern = Regex(
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?[{letters}]+|\p{{N}}"
        rf"| ?[^\s{letters}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )

    def steps(tokenizer: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
        _merge_pairs(tokenizer, continuing_subword_prefix="", end_of_word_suffix="")
        tokenizer.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(pattern, behavior="isolated", invert=False)
        spaced = bool(config.get("add_prefix_space"))
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=spaced, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
        tokenizer.decoder = decoders.ByteLevel()

    return steps


def _gpt2(tokenizer: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    _merge_pairs(tokenizer, continuing_subword_prefix="", end_of_word_suffix="")
    spaced = bool(config.get("add_prefix_space"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    tokenizer.decoder = decoders.ByteLevel()


def _gpt_neox(tokenizer: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    _gpt2(tokenizer, config)
    tokenizer.normalizer = normalizers.NFC()


def _cohere(tokenizer: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    _gpt_neox(tokenizer, config)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, tokenizer.pre_tokenizer])


def _unknown(config: Mapping[str, Any], default: str) -> str:
    token = config.get("unk_token", default)
    return token["content"] if isinstance(token, dict) else str(token)


_END = "<|endoftext|>"
_LLAMA_ROLES = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_QWEN_ROLES = {"unk_token": _END, "bos_token": None, "eos_token": _END, "pad_token": _END}
_GPT2_ROLES = {"unk_token": _END, "bos_token": _END, "eos_token": _END}
CLASSES: dict[str, TokenizerClass] = {
    "LlamaTokenizer": TokenizerClass(_llama, _LLAMA_ROLES),
    "CodeLlamaTokenizer": TokenizerClass(
        _code_llama,
        {
            **_LLAMA_ROLES,
            "prefix_token": "▁<PRE>",
            "middle_token": "▁<MID>",
            "suffix_token": "▁<SUF>",
            "eot_token": "▁<EOT>",
            "fill_token": "<FILL_ME>",
        },
        add_bos_token=True,
    ),
    "GemmaTokenizer": TokenizerClass(
        _gemma,
        {
            "unk_token": "<unk>",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
    ),
    "Qwen2Tokenizer": TokenizerClass(_qwen(r"\p{L}"), _QWEN_ROLES, plain_special_tokens=True),
    "Qwen3_5Tokenizer": TokenizerClass(_qwen(r"\p{L}\p{M}"), _QWEN_ROLES),
    "GPT2Tokenizer": TokenizerClass(_gpt2, _GPT2_ROLES),
    "GPTNeoXTokenizer": TokenizerClass(
        _gpt_neox, {**_GPT2_ROLES, "pad_token": "<|padding|>"}, own_post_processor=True
    ),
    "CohereTokenizer": TokenizerClass(
        _cohere,
        {
            "unk_token": "<UNK>",
            "bos_token": "<BOS_TOKEN>",
            "eos_token": "<|END_OF_TURN_TOKEN|>",
            "pad_token": "<PAD>",
            "cls_token": "<CLS>",
            "sep_token": "<SEP>",
            "mask_token": "<MASK_TOKEN>",
        },
    ),
}

REGISTERED = {
    name: tokenizer_class
    for tokenizer_class, names in (
        ("CodeLlamaTokenizer", "code_llama"),
        ("CohereTokenizer", "cohere cohere2"),
        ("GPT2Tokenizer", "codegen dbrx emu3 gpt2 gpt_neo gptj jais2 opt phi starcoder2"),
        ("GPTNeoXTokenizer", "falcon_mamba gpt_neox mamba mamba2 mpt olmo olmoe rwkv xlstm"),
        ("GemmaTokenizer", "gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text recurrent_gemma zaya"),
        ("Qwen2Tokenizer", "dots3_note moss_transcribe_diarize qwen2 qwen2_moe qwen3 qwen3_moe qwen3_next"),
        ("Qwen3_5Tokenizer", "qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen4_exp"),
        (
            GENERIC,
            "beam bigbird_pegasus ernie4_5 ernie4_5_moe flex_olmo fuyu glm glm4 glm4_moe glm4_moe_lite",
        ),
        (GENERIC, "got_ocr2 gpt_bigcode granite granitemoe granitemoehybrid granitemoeshared hyperclovax"),
        (GENERIC, "internlm3 iquestcoder jamba kimi_linear mimo_v2_flash minicpm3 minimax_m2 ministral"),
        (GENERIC, "ministral3 mistral mixtral modernbert-decoder nemotron olmo2 olmo3 olmo_hybrid persimmon"),
        (GENERIC, "phi3 phimoe stablelm xlm-roberta-xl"),
    )
    for name in names.split()
}
"""The class that transformers registers for the `model_type` of a causal language model."""
OVERRIDING = frozenset({"qwen2", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen4_exp"})
"""Model types with a registered class that counts even if `tokenizer_config.json` declares another one."""


def class_of(config: Mapping[str, Any], model_config: Mapping[str, Any], byte_level: bool) -> str:
    """Select the tokenizer class as `AutoTokenizer` of transformers 5 does.

    Args:
        config: The content of `tokenizer_config.json`.
        model_config: The content of `config.json`.
        byte_level: Whether `tokenizer.json` has byte-level steps.

    Returns:
        The name of the class; `GENERIC` if none is declared.
    """
    declared = config.get("tokenizer_class") or model_config.get("tokenizer_class") or ""
    declared = declared.removesuffix("Fast")
    model_type = model_config.get("model_type")
    registered = REGISTERED.get(model_type or "")
    if not config.get("auto_map"):
        if registered and declared not in ("", registered):
            if registered == GENERIC:
                return GENERIC
            if model_type in OVERRIDING:
                return registered
        if declared == "LlamaTokenizer" and byte_level:
            return GENERIC  # Llama 3
    return declared or registered or GENERIC


def is_byte_level(tokenizer: tokenizers.Tokenizer) -> bool:
    """Check for byte-level steps.

    Args:
        tokenizer: A tokenizer of `tokenizer.json`.

    Returns:
        Whether its pre-tokenizer or decoder is byte-level.
    """
    return any("ByteLevel" in repr(step) for step in (tokenizer.pre_tokenizer, tokenizer.decoder))


def merges_pairs(tokenizer: tokenizers.Tokenizer) -> bool:
    """Check the type of a model.

    Args:
        tokenizer: A tokenizer.

    Returns:
        Whether its model merges pairs, as the classes of `CLASSES` do.
    """
    return isinstance(tokenizer.model, models.BPE)
