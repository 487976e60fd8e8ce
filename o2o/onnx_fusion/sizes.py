"""Numbers for the symbolic dimensions of a twin: distinct primes that divide no other dimension.

The size of a tensor is a polynomial of the symbols. Two sizes that agree at such numbers agree at all
numbers, and no axis of tokens is mistaken for an axis of heads.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from o2o.contract import role_of
from o2o.dimension_expressions import evaluated
from o2o.errors import ModelError
from o2o.formats.tensors import constants_of
from o2o.model import dims_of
from o2o.roles.names import role_by_name

_PRIMES = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101)
_SHAPE_RANK = 16
"""The most numbers of a constant that may be a shape."""


def twin_sizes(graph: ir.Graph, skip: int = 0) -> tuple[dict[str, int], int]:
    """Choose the number of each symbolic dimension of a graph's inputs.

    Inputs of a language model agree in their numbers of texts, tokens and cache rows, under whatever names.

    Args:
        graph: An ONNX graph.
        skip: How many primes are not chosen.

    Returns:
        The numbers by name, and the number of texts B; 1 if that is no symbol.

    Raises:
        ModelError: There are too many symbols.
    """
    primes = itertools.islice(_free_primes(graph), skip, None)
    batch, tokens, past = next(primes), next(primes), next(primes)
    sizes: dict[str, int] = {}
    texts: set[str] = set()
    inputs = [(value, _kind(value), dims_of(value) or ()) for value in graph.inputs]
    has_tokens = any(kind == "tokens" for _, kind, _ in inputs)
    caches = {value for value, kind, dims in inputs if _is_cache(kind, value, dims, has_tokens)}
    for value, kind, dims in inputs:
        symbols = {axis: dim for axis, dim in enumerate(dims) if isinstance(dim, str) and dim.isidentifier()}
        by_axis: dict[int, int] = {}
        if value in caches:
            rows = [axis for axis, symbol in symbols.items() if axis and "encoder" not in symbol]
            by_axis = {0: batch} | dict.fromkeys(rows, past)
        elif kind in ("tokens", "position") and len(dims) <= 2:
            by_axis = {len(dims) - 1: tokens} | ({0: batch} if len(dims) == 2 else {})
        elif kind == "mask" and len(dims) in (2, 4):
            keys = past + tokens if caches else tokens
            by_axis = {0: batch, len(dims) - 1: keys} | ({2: tokens} if len(dims) == 4 else {})
        for axis, symbol in symbols.items():
            if axis in by_axis:
                sizes.setdefault(symbol, by_axis[axis])
                texts |= {symbol} if axis == 0 and by_axis[0] == batch and len(dims) > 1 else set()
    for _, _, dims in inputs:
        for axis, dim in enumerate(dims):
            if not isinstance(dim, str) or dim in sizes or evaluated(dim, sizes) is not None:
                continue
            if dim == "?":
                raise ModelError("a dimension of an input has no name (fix.shape.py gives it a number)")
            sizes[dim] = batch if axis == 0 and not texts else next(primes)
            texts |= {dim} if axis == 0 else set()
    return sizes, batch if any(sizes[symbol] == batch for symbol in texts) else 1


def _kind(value: ir.Value) -> str | None:
    role = role_of(value) or role_by_name(value.name or "", is_input=True)
    return role.kind if role is not None else None


def _is_cache(kind: str | None, value: ir.Value, dims: tuple[int | str, ...], has_tokens: bool) -> bool:
    is_float = value.dtype is not None and value.dtype.is_floating_point()
    if len(dims) != 4 or not is_float:
        return False
    return kind in ("key_cache", "value_cache") or (kind is None and has_tokens)


def _free_primes(graph: ir.Graph) -> Iterator[int]:
    """The primes that divide no number of a shape."""
    numbers = {dim for value in graph.inputs for dim in dims_of(value) or () if isinstance(dim, int)}
    for value in constants_of(graph):
        tensor = value.const_value
        assert tensor is not None
        numbers |= {int(dim) for dim in tensor.shape.numpy()}
        if tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32) and tensor.size <= _SHAPE_RANK:
            numbers |= {int(number) for number in np.reshape(tensor.numpy(), -1)}
    for prime in _PRIMES:
        if all(number % prime for number in numbers if number > 0):
            yield prime
    raise ModelError("it has too many symbolic dimensions (fix.shape.py gives them numbers)")
