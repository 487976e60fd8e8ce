"""Deduplication of constants: those with equal bytes share one storage.

Counterpart: `onnx_ir.passes.common.DeduplicateHashedInitializersPass`. That one merges values of one dtype
and shape, and loads each whole. Here values stay apart and share bytes, whatever their dtype and shape.
Bytes are hashed in chunks, and only where sizes and first bytes are equal: models may exceed memory.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from o2o.formats.onnx_proto import SparseTensor
from o2o.formats.tensors import (
    LARGE,
    StreamedTensor,
    can_share_bytes,
    chunks,
    constant,
    storage_key,
    with_shape,
)
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import Model, shape_of

SAMPLE = 4096  # leading bytes, which differ in most constants of one size
CHUNK = 1 << 20


class Deduplication(NamedTuple):
    """The number of stored constants, how many of them were duplicates, and the bytes that this saves."""

    total: int
    duplicates: int
    saved_bytes: int


def deduplicate_constants(model: Model, only: type = object) -> Deduplication:
    """Let constants of `model` with equal bytes share them, in place.

    References into a checkpoint share storage when they name one tensor; they are not read.

    Args:
        model: Its graphs, including loose tensors.
        only: A tensor class. Groups of equal constants without an instance of it stay as they are.

    Returns:
        The counts, and the bytes saved.
    """
    stored: dict[Hashable, ir.TensorProtocol] = {}
    for value in _constants(model):
        assert value.const_value is not None
        stored.setdefault(storage_key(value.const_value), value.const_value)
    originals: dict[Hashable, ir.TensorProtocol] = {}
    duplicates = saved = 0
    for group in _equal(stored, only):
        # Raw bytes can be shared by any dtype. A weight is converted when written: only its own dtype can
        # share it.
        first: dict[ir.DataType | None, Hashable] = {}
        for key in sorted(group, key=lambda key: _is_converted(stored[key])):
            original = first[None] if None in first else first.setdefault(_written_dtype(stored[key]), key)
            if original != key:
                originals.setdefault(original, _shareable(stored[original]))
                originals[key] = originals[original]
                duplicates, saved = duplicates + 1, saved + stored[key].nbytes
    for value in _constants(model):
        tensor = value.const_value
        assert tensor is not None
        shared = originals.get(storage_key(tensor))
        if shared is not None and shared is not tensor:
            encoded = tensor.dtype != value.dtype
            shape = tuple(tensor.shape.numpy()) if encoded else shape_of(value)
            value.const_value = with_shape(shared, shape, value.name or "", tensor.dtype)
    return Deduplication(len(stored), duplicates, saved)


def _equal(stored: dict[Hashable, ir.TensorProtocol], only: type) -> Iterator[list[Hashable]]:
    """Groups of keys whose constants have equal bytes."""
    for candidates in _similar(stored, only):
        by_digest: dict[bytes, list[Hashable]] = defaultdict(list)
        for key in candidates:
            digest = hashlib.sha256()
            for chunk in chunks(stored[key], CHUNK):
                digest.update(chunk)
            by_digest[digest.digest()].append(key)
        yield from (keys for keys in by_digest.values() if any(isinstance(stored[key], only) for key in keys))


def _similar(stored: dict[Hashable, ir.TensorProtocol], only: type) -> Iterator[list[Hashable]]:
    """Groups of keys whose constants have one size and equal first bytes."""
    for same_size in _grouped(stored, only, lambda tensor: tensor.nbytes):
        tensors = {key: stored[key] for key in same_size}
        yield from _grouped(tensors, only, _sample)


def _sample(tensor: ir.TensorProtocol) -> bytes:
    return bytes(next(iter(chunks(tensor, SAMPLE)), b"")[:SAMPLE])


def _grouped(
    stored: dict[Hashable, ir.TensorProtocol], only: type, group_key: Callable[[ir.TensorProtocol], Hashable]
) -> list[list[Hashable]]:
    groups: dict[Hashable, list[Hashable]] = defaultdict(list)
    for key, tensor in stored.items():
        if tensor.nbytes and not isinstance(tensor, UnboundTensor):
            groups[group_key(tensor)].append(key)
    return [
        group
        for group in groups.values()
        if len(group) > 1 and any(isinstance(stored[key], only) for key in group)
    ]


def _written_dtype(tensor: ir.TensorProtocol) -> ir.DataType | None:
    """The dtype to which a weight is converted when it is written; None for bytes that stay as they are."""
    return tensor.dtype if _is_converted(tensor) else None


def _is_converted(tensor: ir.TensorProtocol) -> bool:
    return isinstance(tensor, StreamedTensor) and tensor.is_converted


def _shareable(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """`tensor`, over bytes that other tensors can share."""
    if can_share_bytes(tensor):
        return tensor
    raw = np.frombuffer(tensor.tobytes(), np.uint8)
    return constant(raw, tensor.dtype, tuple(tensor.shape.numpy()), tensor.name or "")


def _constants(model: Model) -> Iterator[ir.Value]:
    for graph in model.graphs:
        for value in (*graph.initializers.values(), *graph.meta.get("loose", ())):
            if value.const_value is not None and (model.format != "onnx" or _is_large(value.const_value)):
                yield value


def _is_large(tensor: ir.TensorProtocol) -> bool:
    """Whether graphs of an ONNX file can share a constant: small ones are in each graph."""
    is_plain = tensor.dtype != ir.DataType.STRING and not isinstance(tensor, SparseTensor)
    return is_plain and tensor.nbytes >= LARGE
