"""What the inputs and outputs of a signature are: by its contract, or by the names of AI Edge's interface."""

from __future__ import annotations

import re
from dataclasses import dataclass

import onnx_ir as ir

from o2o.contract import Role, role_of
from o2o.errors import ModelError
from o2o.model import Signature, shape_of

Slot = tuple[str, int]
"""("key" or "value", layer)."""

_CACHE = re.compile(r"kv_cache_([kv])_(\d+)")
_NAMES = {"tokens": Role("tokens"), "input_pos": Role("position"), "logits": Role("logits")}


@dataclass(frozen=True)
class Cache:
    """A cache that goes in, or what comes out of it."""

    name: str
    value: ir.Value
    layout: str


@dataclass(frozen=True)
class Ends:
    """A signature that reads `length` tokens: (name, tensor) of each end. A prefill that only reads the
    beginning of a prompt has no caches, and rows of that length."""

    name: str
    graph: ir.Graph
    length: int
    tokens: tuple[str, ir.Value]
    position: tuple[str, ir.Value] | None
    logits: tuple[str, ir.Value] | None
    caches: dict[Slot, Cache]
    rows: dict[Slot, Cache]


def ends_of(signature: Signature) -> Ends:
    """Raises ModelError for an end that is nothing known."""
    found: dict[str, tuple[str, ir.Value]] = {}
    caches: dict[Slot, Cache] = {}
    rows: dict[Slot, Cache] = {}
    for values, into in ((signature.inputs, caches), (signature.outputs, rows)):
        for name, value in values.items():
            role = role_of(value) or _by_name(name)
            if role is None:
                raise ModelError(f"{signature.name}: nothing says what {name} is")
            if role.layout is None:
                found[role.kind] = name, value
            else:
                slot = role.kind.removesuffix("_cache"), role.layer or 0
                into[slot] = Cache(name, value, role.layout)
    if "tokens" not in found:
        raise ModelError(f"{signature.name} has no tokens as input")
    tokens = found["tokens"]
    length = shape_of(tokens[1])[-1]
    position, logits = found.get("position"), found.get("logits")
    return Ends(signature.name, signature.graph, length, tokens, position, logits, caches, rows)


def _by_name(name: str) -> Role | None:
    if match := _CACHE.fullmatch(name):
        return Role("key" if match[1] == "k" else "value", int(match[2]), "BTNH")
    return _NAMES.get(name)
