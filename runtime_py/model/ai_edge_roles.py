"""Roles of the tensors in a TFLite file without a contract, by AI Edge's naming convention.

    prefill_64: tokens, input_pos, kv_cache_k_0, ... -> kv_cache_k_0, ...
    decode:     tokens, input_pos, kv_cache_k_0, ... -> kv_cache_k_0, ..., logits

AI Edge's converter has used several cache layouts over time. Only [1, S, K, H] is supported.
"""

from __future__ import annotations

import re

from o2o.contract import Kind, Role
from o2o.errors import ModelError
from o2o.model import Model, shape_of

_CACHE = re.compile(r"kv_cache_([kv])_(\d+)")
_CACHE_KINDS: dict[str, Kind] = {"k": "key_cache", "v": "value_cache"}
_KINDS: dict[str, Kind] = {"tokens": "tokens", "input_pos": "position", "logits": "logits"}


def guess_roles(model: Model) -> None:
    """Attach roles to the inputs and outputs of signatures with AI Edge's names.

    Args:
        model: A TFLite model. Signatures with other names are not changed.

    Raises:
        ModelError: A signature has caches of another layout, or an input `mask`.
    """
    for signature in model.signatures:
        if not {"tokens", "input_pos"} <= signature.inputs.keys():
            continue
        if "mask" in signature.inputs:
            raise ModelError(
                f"{signature.name} takes the attention mask as an input: convert the model again, with "
                "mask_as_input off"
            )
        shapes = {shape_of(value) for name, value in signature.inputs.items() if _CACHE.fullmatch(name)}
        if len(shapes) > 1:
            shapes_text = ", ".join(str(list(shape)) for shape in sorted(shapes))
            raise ModelError(
                f"{signature.name} has caches of several shapes, {shapes_text}: all must be [1, S, K, H]"
            )
        for name, value in signature.inputs.items():
            if (role := _role(name)) is not None:
                value.meta["role"] = role
        for name, value in signature.outputs.items():
            if (role := _role(name)) is not None:
                value.meta["role"] = role.output_role


def _role(name: str) -> Role | None:
    """The role of an input with this name."""
    if (cache := _CACHE.fullmatch(name)) is not None:
        return Role(_CACHE_KINDS[cache[1]], int(cache[2]), "BTNH")
    return Role(_KINDS[name]) if name in _KINDS else None
