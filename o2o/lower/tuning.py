"""A lowered decoder as LiteRT runs it fastest: caches by head, and decode in several capacities.

[1, S, K, H], AI Edge's layout, has to be transposed before each head's keys can be multiplied, which takes as
long as the multiplication. And decode computes with all of a cache, however short the text is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from o2o.contract import role_of
from o2o.model import Model, Signature, shape_of
from o2o.rewriting.capacity import add_capacities, provable
from o2o.rewriting.collapse import collapse_layouts
from o2o.rewriting.layout import turn_caches
from o2o.rewriting.match import Miss

SMALLEST = 256
"""Rows from which capacities double: `bench/decode_attention.py` tells what a step costs in each."""


def doubling(capacity: int) -> list[int]:
    """256, 512, ... below `capacity`, as far as it can be proven that these do."""
    found = []
    rows = SMALLEST
    while rows < capacity and provable(rows, capacity):
        found.append(rows)
        rows *= 2
    return found


def tune(model: Model, capacities: Sequence[int] | None = None) -> bool:
    """Change the TFLite model in place, where there is a capacity below that of its caches; whether there is.

    capacities: those of decode besides its own, where they are below it; None for what `doubling` gives.
    Those that the model has already stay, and so does a decode that cannot be proven to do with less.
    """
    decode = next((signature for signature in model.signatures if signature.name == "decode"), None)
    own = capacity_of(decode) if decode is not None else 0
    wanted = [rows for rows in (doubling(own) if capacities is None else capacities) if rows < own]
    if decode is None or not wanted:
        return False
    for signature in model.signatures:
        turn_caches(model, signature.graph, "BNTH")
        collapse_layouts(model, signature.graph)
    if not any(signature.name.startswith("decode_") for signature in model.signatures):
        with contextlib.suppress(Miss):
            add_capacities(model, decode, wanted)
    return True


def capacity_of(signature: Signature) -> int:
    """The rows of its caches, 0 for one without any that the contract tells."""
    for value in signature.inputs.values():
        role = role_of(value)
        if role is not None and role.kind.endswith("_cache") and role.layout is not None:
            return shape_of(value)[role.layout.index("T")]
    return 0
