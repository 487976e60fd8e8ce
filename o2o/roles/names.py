"""Roles by the names of inputs and outputs, as exporters of language models choose them.

ONE, TICO      tico::input_ids, tico::past_key_values_key_cache_0, tico::cache_position
AI Edge        tokens, input_pos, mask, kv_cache_k_0, logits
transformers   input_ids, attention_mask, position_ids, past_key_values.0.key, present.0.key
"""

from __future__ import annotations

import re

from o2o.contract import Kind, Role

_SCOPE = re.compile(r"^(?:[\w.]+::|serving_default_|StatefulPartitionedCall:|args_)+|:\d+$")
_TOKENS = ("input_ids", "tokens", "token_ids", "ids", "token", "input_tokens")
_POSITIONS = ("input_pos", "cache_position", "position_ids", "position", "positions", "pos", "start_pos")
_MASKS = ("mask", "attention_mask", "attn_mask", "causal_mask", "attn_bias")
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(_TOKENS, "tokens"),
    **dict.fromkeys(_POSITIONS, "position"),
    **dict.fromkeys(_MASKS, "mask"),
    **dict.fromkeys(("use_cache_branch", "use_cache"), "use_cache"),
    **dict.fromkeys(("num_logits_to_keep", "logits_to_keep", "num_logits"), "num_logits"),
    **dict.fromkeys(("seqlens_k", "last_position"), "last_position"),
    **dict.fromkeys(("total_sequence_length", "total_seq_len", "nonpad_kv_seqlen"), "length"),
    **dict.fromkeys(("past_sequence_length", "past_seq_len", "write_indices"), "position"),
    **dict.fromkeys(("logits", "lm_logits", "prediction_scores"), "logits"),
}
_LETTERS = {
    **dict.fromkeys(("key", "keys", "k"), "key"),
    **dict.fromkeys(("value", "values", "val", "v"), "value"),
}
_CACHE_WORDS = {"cache", "past", "present", "kv", "layer", "layers", "new", "slice", "state", "states"}


def role_by_name(name: str, *, is_input: bool) -> Role | None:
    """Return the role that a name says.

    Args:
        name: The name of an input or output.
        is_input: Whether it is an input.

    Returns:
        The role, of caches and rows without a layout; None if the name says nothing.
    """
    stem = _SCOPE.sub("", name)
    kind = _KINDS.get(stem.lower())
    if kind is not None:
        return Role(kind) if is_input != (kind == "logits") else None
    words = re.findall(r"[a-z]+|\d+", stem.lower())
    numbers = [word for word in words if word.isdigit()]
    rest = [word for word in words if not word.isdigit()]
    if len(numbers) != 1 or not _CACHE_WORDS & set(rest):
        return None
    # `past_key_values.0.key`: "key values" together are a word for both.
    text = re.sub(r"\bkey values?\b", "cache", " ".join(rest))
    letters = {_LETTERS[word] for word in text.split() if word in _LETTERS}
    if len(letters) != 1:
        return None
    letter = letters.pop()
    role = Role("key_cache" if letter == "key" else "value_cache", int(numbers[0]))
    return role if is_input else role.output_role
