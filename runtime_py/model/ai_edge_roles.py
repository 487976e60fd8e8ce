"""What the tensors of a TFLite model are that was made elsewhere, guessed by AI Edge's names for them.

    prefill_64: tokens, input_pos, kv_cache_k_0, ... -> kv_cache_k_0, ...
    decode:     tokens, input_pos, kv_cache_k_0, ... -> kv_cache_k_0, ..., logits

Its converter has laid out caches in several ways over time: [1, S, K, H] is the one that is known here.
"""

from __future__ import annotations

import re

import onnx_ir as ir

from o2o.contract import Kind, Role
from o2o.errors import ModelError
from o2o.model import Model, shape_of

_CACHE = re.compile(r"kv_cache_([kv])_(\d+)")
_ENDS: dict[str, Kind] = {"tokens": "tokens", "input_pos": "position", "logits": "logits"}


def guess_roles(model: Model) -> None:
    """Hang roles onto the ends of signatures that are called as AI Edge calls them; other signatures stay as
    they are.

    Raises ModelError for caches in a layout that is not known, and for an input `mask`.
    """
    for signature in model.signatures:
        if not {"tokens", "input_pos"} <= signature.inputs.keys():
            continue
        if "mask" in signature.inputs:
            raise ModelError(
                f"{signature.name} wants its attention mask as an input: convert the model so that it makes "
                "the mask itself (mask_as_input off)"
            )
        shapes = {shape_of(v) for name, v in signature.inputs.items() if _CACHE.fullmatch(name)}
        if len(shapes) > 1:
            told = ", ".join(str(list(shape)) for shape in sorted(shapes))
            raise ModelError(f"{signature.name} has caches of several shapes, {told}, not all [1, S, K, H]")
        for name, value in signature.inputs.items():
            _tell(name, value, "_cache")
        for name, value in signature.outputs.items():
            _tell(name, value, "")


def _tell(name: str, value: ir.Value, suffix: str) -> None:
    if (cache := _CACHE.fullmatch(name)) is not None:
        kind = ("key" if cache[1] == "k" else "value") + suffix
        value.meta["role"] = Role(kind, int(cache[2]), "BTNH")  # type: ignore[arg-type]
    elif name in _ENDS:
        value.meta["role"] = Role(_ENDS[name])
