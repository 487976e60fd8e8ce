"""A lowered decoder as LiteRT runs it fastest: caches by head, and decode in several capacities.

[1, S, K, H], AI Edge's layout, has to be transposed before each head's keys can be multiplied, which takes as
long as the multiplication. And decode computes with all of a cache, however short the text is.
"""

from __future__ import annotations

from collections.abc import Sequence

from o2o.contract import role_of
from o2o.model import Model, Signature, shape_of
from o2o.rewriting.capacity import add_capacities
from o2o.rewriting.collapse import collapse_layouts
from o2o.rewriting.layout import turn_caches
from o2o.rewriting.match import Miss

SMALLEST = 256
"""Rows from which capacities double: `bench/buckets.py` tells what a step costs in each."""


def doubling(capacity: int) -> list[int]:
    """256, 512, ... below `capacity`."""
    found = []
    rows = SMALLEST
    while rows < capacity:
        found.append(rows)
        rows *= 2
    return found


def tune(model: Model, capacities: Sequence[int] | None = None) -> str:
    """Change the TFLite model in place. capacities: those of decode besides its own, where they are below it;
    None for those that `doubling` gives.

    Returns why decode has its own capacity alone, "" where it has others. What is there already stays.
    """
    decode = next((signature for signature in model.signatures if signature.name == "decode"), None)
    own = _capacity(decode) if decode is not None else 0
    if decode is None or not own:
        return "there is no decode with caches that the contract tells"
    if any(signature.name.startswith("decode_") for signature in model.signatures):
        return ""
    wanted = [rows for rows in (doubling(own) if capacities is None else capacities) if rows < own]
    if not wanted:
        return f"its caches hold {own} positions"
    for signature in model.signatures:
        turn_caches(model, signature.graph, "BNTH")
        collapse_layouts(model, signature.graph)
    try:
        add_capacities(model, decode, wanted)
    except Miss as reason:
        return str(reason)
    return ""


def _capacity(signature: Signature) -> int:
    """The rows of its caches."""
    for value in signature.inputs.values():
        role = role_of(value)
        if role is not None and role.kind.endswith("_cache") and role.layout is not None:
            return shape_of(value)[role.layout.index("T")]
    return 0
