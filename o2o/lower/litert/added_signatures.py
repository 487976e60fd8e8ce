"""Signatures that the runtime adds to a lowered model: their cache layout, buckets and names."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence

from o2o.contract import role_of
from o2o.model import Model, Signature, shape_of
from o2o.rewriting.cache_buckets import add_cache_buckets
from o2o.rewriting.cache_layout import transpose_caches
from o2o.rewriting.matchers import MatchFailure
from o2o.rewriting.simplify_layout_ops import simplify_layout_ops
from o2o.signatures import decode_of


def add_buckets(added: Model, signature: Signature, model: Model, capacities: Sequence[int]) -> None:
    """Give a signature the cache layout of a model's decode, and add copies of it with fewer cache rows.

    Where the copies cannot be proven to compute the same there are none. Then decode has none, either.

    Args:
        added: A lowered TFLite model, changed in place.
        signature: One of its signatures. It reads T tokens and takes KV caches.
        model: The lowered TFLite model that the signature is for.
        capacities: Numbers of rows, from T on, below the model's own.
    """
    roles = (role_of(value) for value in decode_of(model).inputs.values())
    layout = next(role.layout for role in roles if role is not None and role.is_cache)
    if (layout == "BNTH" or layout == "BTNH") and transpose_caches(added, signature.graph, layout).transposed:
        simplify_layout_ops(added, signature.graph)
    with contextlib.suppress(MatchFailure):
        add_cache_buckets(added, signature, capacities, causal=True)


def rename_taken(signatures: Iterable[Signature], model: Model) -> None:
    """Give signatures other names where a model has signatures of their names.

    Args:
        signatures: The signatures; changed in place.
        model: The model that they will be added to.
    """
    taken = {signature.name for signature in model.signatures}
    for signature in signatures:
        while signature.name in taken:
            signature.name = f"{signature.name}_"


def tokens_of(signature: Signature) -> int:
    """Return how many tokens a signature reads.

    Args:
        signature: A signature with an input of the role `tokens`.

    Returns:
        T.
    """
    roles = ((value, role_of(value)) for value in signature.inputs.values())
    ids = next(value for value, role in roles if role is not None and role.kind == "tokens")
    return math.prod(shape_of(ids))
