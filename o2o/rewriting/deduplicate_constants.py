"""Equal constants share their bytes."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator

import numpy as np
import onnx_ir as ir

from o2o.formats.external_tensor import ExternalTensor
from o2o.formats.tensors import constant, is_in_place, pieces, storage_key, with_shape
from o2o.model import Model, shape_of
from o2o.weights.weight import Weight

SAMPLE = 4096  # bytes at the beginning that tell most constants of one size apart
CHUNK = 1 << 20


def deduplicate_constants(model: Model, only: type = object) -> tuple[int, int, int]:
    """Let equal constants of `model` share their bytes: how many there are, were shared, and bytes saved.

    Bytes count, not dtype and shape: a buffer may well be a vector here and a matrix there. Only constants
    that are of one size and begin alike are read in full. References are equal when they refer to the same.

    only: a class of tensors; what equals none of these stays apart (`Weight`: what equals none of a
    checkpoint's tensors).
    """
    stored: dict[Hashable, ir.TensorProtocol] = {}
    for value in _constants(model):
        assert value.const_value is not None
        stored.setdefault(storage_key(value.const_value), value.const_value)
    original: dict[Hashable, ir.TensorProtocol] = {}
    shared = saved = 0
    for group in _equal(stored, only):
        # Bytes can be looked at as anything, but weights, which are converted, only as what they become.
        first: dict[ir.DataType | None, Hashable] = {}
        for key in sorted(group, key=lambda key: isinstance(stored[key], Weight)):
            kept = first[None] if None in first else first.setdefault(_becomes(stored[key]), key)
            if kept != key:
                original.setdefault(kept, _shareable(stored[kept]))
                original[key] = original[kept]
                shared, saved = shared + 1, saved + stored[key].nbytes
    for value in _constants(model):
        tensor = value.const_value
        assert tensor is not None
        found = original.get(storage_key(tensor))
        if found is not None and found is not tensor:
            encoded = tensor.dtype != value.dtype
            shape = tuple(tensor.shape.numpy()) if encoded else shape_of(value)
            value.const_value = with_shape(found, shape, value.name or "", tensor.dtype)
    return len(stored), shared, saved


def _equal(stored: dict[Hashable, ir.TensorProtocol], only: type) -> Iterator[list[Hashable]]:
    """The keys of constants that are equal."""
    for alike in _alike(stored, only):
        by_digest: dict[bytes, list[Hashable]] = defaultdict(list)
        for key in alike:
            digest = hashlib.sha256()
            for piece in pieces(stored[key], CHUNK):
                digest.update(piece)
            by_digest[digest.digest()].append(key)
        yield from (keys for keys in by_digest.values() if any(isinstance(stored[key], only) for key in keys))


def _alike(stored: dict[Hashable, ir.TensorProtocol], only: type) -> Iterator[list[Hashable]]:
    """The keys of constants that may be equal."""
    for same_size in _grouped(stored, only, lambda tensor: tensor.nbytes):
        tensors = {key: stored[key] for key in same_size}
        yield from _grouped(tensors, only, _sample)


def _sample(tensor: ir.TensorProtocol) -> bytes:
    return bytes(next(iter(pieces(tensor, SAMPLE)), b"")[:SAMPLE])


def _grouped(
    stored: dict[Hashable, ir.TensorProtocol], only: type, kind: Callable[[ir.TensorProtocol], Hashable]
) -> list[list[Hashable]]:
    groups: dict[Hashable, list[Hashable]] = defaultdict(list)
    for key, tensor in stored.items():
        if tensor.nbytes and not isinstance(tensor, ExternalTensor):
            groups[kind(tensor)].append(key)
    return [
        group
        for group in groups.values()
        if len(group) > 1 and any(isinstance(stored[key], only) for key in group)
    ]


def _becomes(tensor: ir.TensorProtocol) -> ir.DataType | None:
    """What a weight is converted to when it is written; bytes stay what they are."""
    return tensor.dtype if isinstance(tensor, Weight) else None


def _shareable(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """`tensor`, over bytes that others can be views of."""
    if is_in_place(tensor):
        return tensor
    raw = np.frombuffer(tensor.tobytes(), np.uint8)
    return constant(raw, tensor.dtype, tuple(tensor.shape.numpy()), tensor.name or "")


def _constants(model: Model) -> Iterator[ir.Value]:
    for graph in model.graphs:
        for value in (*graph.initializers.values(), *graph.meta.get("loose", ())):
            if value.const_value is not None:
                yield value
