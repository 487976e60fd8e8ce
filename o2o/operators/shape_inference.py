"""Shape inference: the shapes that an operator computes from those of its operands.

It covers the operators of decoders. `infer_shapes` returns None for others, and where a shape depends on
numbers that are not constant. Source: TFLite's kernels; for Circle's operators `reference`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.tensors import constant_array
from o2o.model import CUSTOM_DOMAIN, DOMAIN, attribute, is_dynamic, shape_of
from o2o.operators.attention import Attention
from o2o.operators.core_attention import NAMES, CoreAttention
from o2o.operators.traits import BUILTIN

Shape = tuple[int, ...]
Shapes = Sequence[Shape | None]
Inference = Callable[[ir.Node], Shapes | None]


class Mismatch(Exception):
    """The operands or options of an operator do not fit together. The message says why."""


def infer_shapes(node: ir.Node) -> Shapes | None:
    """Compute the shapes of a node's results from its operands.

    Args:
        node: Any node.

    Returns:
        A shape for each result, None for one that is unknown. None if all are unknown.

    Raises:
        Mismatch: The operands or options do not fit together.
    """
    inference = {DOMAIN: _BUILTIN, CUSTOM_DOMAIN: _CUSTOM}.get(node.domain, {}).get(node.op_type)
    operands = [value for value in node.inputs if value is not None]
    if inference is None or any(is_dynamic(value) or value.shape is None for value in operands):
        return None
    try:
        return inference(node)
    except ModelError as error:
        raise Mismatch(str(error)) from error
    except (IndexError, ValueError, TypeError, ZeroDivisionError) as error:
        raise Mismatch("an operand is missing, or its rank is wrong") from error


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """Compute the shape of operands that are broadcast to each other.

    Args:
        shapes: The shapes of the operands.

    Returns:
        The common shape.

    Raises:
        Mismatch: There is none.
    """
    try:
        return tuple(np.broadcast_shapes(*shapes))
    except ValueError:
        listed = " and ".join(f"[{','.join(map(str, shape))}]" for shape in shapes)
        raise Mismatch(f"{listed} do not broadcast") from None


def _x(node: ir.Node, operand: int = 0) -> Shape:
    value = node.inputs[operand]
    if value is None:
        raise IndexError
    return shape_of(value)


def _ints(node: ir.Node, operand: int) -> list[int] | None:
    """The numbers of a constant operand; None if it is not constant."""
    array = constant_array(node.inputs[operand]) if operand < len(node.inputs) else None
    return None if array is None else [int(number) for number in array.reshape(-1)]


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise Mismatch(f"axis {axis} is out of range for {rank} axes")
    return axis % rank


def _unary(node: ir.Node) -> Shapes:
    return [_x(node)]


def _elementwise(node: ir.Node) -> Shapes:
    return [broadcast([shape_of(value) for value in node.inputs if value is not None])]


def _select(node: ir.Node) -> Shapes:
    condition, x = _x(node), _x(node, 1)
    if len(condition) == 1 and len(x) > 1:  # rows
        if condition[0] not in (1, x[0]):
            raise Mismatch(f"{condition[0]} conditions for {x[0]} rows")
        return [broadcast([x, _x(node, 2)])]
    return _elementwise(node)


def _reshape(node: ir.Node) -> Shapes | None:
    shape = _ints(node, 1)
    if shape is None:
        shape = None if len(node.inputs) > 1 and node.inputs[1] is not None else attribute(node, "newShape")
    size = math.prod(_x(node))
    if shape is None:
        declared = shape_of(node.outputs[0])
        if math.prod(declared) != size and not is_dynamic(node.outputs[0]):
            raise Mismatch(f"{size} elements do not fit into {_text(declared)}")
        return None
    known = math.prod(dim for dim in shape if dim != -1)
    if -1 in shape and known and size % known == 0:
        shape = [size // known if dim == -1 else dim for dim in shape]
    if math.prod(shape) != size:
        raise Mismatch(f"{size} elements do not fit into {_text(shape)}")
    return [tuple(shape)]


def _text(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _expand_dims(node: ir.Node) -> Shapes | None:
    axis = _ints(node, 1)
    if axis is None:
        return None
    x = list(_x(node))
    x.insert(_axis(axis[0], len(x) + 1), 1)
    return [tuple(x)]


def _squeeze(node: ir.Node) -> Shapes:
    x = _x(node)
    axes = {_axis(int(axis), len(x)) for axis in attribute(node, "squeezeDims") or ()}
    axes = axes or {axis for axis, dim in enumerate(x) if dim == 1}
    if wrong := [axis for axis in axes if x[axis] != 1]:
        raise Mismatch(f"axis {wrong[0]} of {_text(x)} is not 1")
    return [tuple(dim for axis, dim in enumerate(x) if axis not in axes)]


def _transpose(node: ir.Node) -> Shapes | None:
    axes, x = _ints(node, 1), _x(node)
    if axes is None:
        return None
    if sorted(_axis(axis, len(x)) for axis in axes) != list(range(len(x))):
        raise Mismatch(f"{_text(axes)} is no permutation of {len(x)} axes")
    return [tuple(x[axis] for axis in axes)]


def _broadcast_to(node: ir.Node) -> Shapes | None:
    shape = _ints(node, 1)
    if shape is None:
        return None
    if broadcast([_x(node), tuple(shape)]) != tuple(shape):
        raise Mismatch(f"{_text(_x(node))} does not broadcast to {_text(shape)}")
    return [tuple(shape)]


def _concatenation(node: ir.Node) -> Shapes:
    shapes = [shape_of(value) for value in node.inputs if value is not None]
    axis = _axis(attribute(node, "axis", 0), len(shapes[0]))
    rest = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
    if len(rest) != 1 or len({len(shape) for shape in shapes}) != 1:
        raise Mismatch(f"{' and '.join(map(_text, shapes))} differ in other axes than {axis}")
    first = shapes[0]
    return [(*first[:axis], sum(shape[axis] for shape in shapes), *first[axis + 1 :])]


def _pack(node: ir.Node) -> Shapes:
    shapes = {shape_of(value) for value in node.inputs if value is not None}
    if len(shapes) != 1:
        raise Mismatch(f"{' and '.join(map(_text, shapes))} are not equal")
    shape = list(shapes.pop())
    shape.insert(_axis(attribute(node, "axis", 0), len(shape) + 1), len(node.inputs))
    return [tuple(shape)]


def _unpack(node: ir.Node) -> Shapes:
    x = _x(node)
    axis = _axis(attribute(node, "axis", 0), len(x))
    if x[axis] != len(node.outputs):
        raise Mismatch(f"{len(node.outputs)} results for {x[axis]} slices")
    return [(*x[:axis], *x[axis + 1 :])] * x[axis]


def _split(node: ir.Node) -> Shapes | None:
    axes, x = _ints(node, 0), _x(node, 1)
    if axes is None:
        return None
    axis, parts = _axis(axes[0], len(x)), len(node.outputs)
    if x[axis] % parts:
        raise Mismatch(f"axis {axis} of {_text(x)} has no {parts} equal parts")
    return [(*x[:axis], x[axis] // parts, *x[axis + 1 :])] * parts


def _split_v(node: ir.Node) -> Shapes | None:
    sizes, axes, x = _ints(node, 1), _ints(node, 2), _x(node)
    if sizes is None or axes is None:
        return None
    axis = _axis(axes[0], len(x))
    if len(sizes) != len(node.outputs):
        raise Mismatch(f"{len(sizes)} sizes for {len(node.outputs)} results")
    if -1 in sizes:
        sizes = [x[axis] - sum(sizes) - 1 if size == -1 else size for size in sizes]
    if sum(sizes) != x[axis]:
        raise Mismatch(f"the sizes {_text(sizes)} do not add up to {x[axis]}")
    return [(*x[:axis], size, *x[axis + 1 :]) for size in sizes]


def _slice(node: ir.Node) -> Shapes | None:
    begin, sizes, x = _ints(node, 1), _ints(node, 2), _x(node)
    if sizes is None or len(sizes) != len(x):
        if sizes is not None:
            raise Mismatch(f"{len(sizes)} sizes for {len(x)} axes")
        return None
    if begin is None:
        return [tuple(sizes)] if -1 not in sizes else None
    shape = [dim - b if size == -1 else size for b, size, dim in zip(begin, sizes, x, strict=True)]
    for axis, (b, size, dim) in enumerate(zip(begin, shape, x, strict=True)):
        if b < 0 or size < 0 or b + size > dim:
            raise Mismatch(f"{b} to {b + size} is out of range on axis {axis} of {_text(x)}")
    return [tuple(shape)]


def _strided_slice(node: ir.Node) -> Shapes | None:
    begin, end, strides = (_ints(node, operand) for operand in (1, 2, 3))
    if begin is None or end is None or strides is None:
        return None
    if attribute(node, "ellipsisMask", 0) or attribute(node, "newAxisMask", 0):
        return None
    masks = {name: attribute(node, name, 0) for name in ("beginMask", "endMask", "shrinkAxisMask")}
    x, shape = _x(node), []
    if len(begin) > len(x):
        raise Mismatch(f"{len(begin)} bounds for {len(x)} axes")
    for axis, dim in enumerate(x):
        if axis >= len(begin):
            shape.append(dim)
        elif not masks["shrinkAxisMask"] >> axis & 1:
            first = None if masks["beginMask"] >> axis & 1 else begin[axis]
            last = None if masks["endMask"] >> axis & 1 else end[axis]
            if attribute(node, "offset", 0) and last is not None:
                last += begin[axis]
            shape.append(len(range(*slice(first, last, strides[axis]).indices(dim))))
    return [tuple(shape)]


def _tile(node: ir.Node) -> Shapes | None:
    times = _ints(node, 1)
    return None if times is None else [tuple(dim * n for dim, n in zip(_x(node), times, strict=True))]


def _fill(node: ir.Node) -> Shapes | None:
    dims = _ints(node, 0)
    return None if dims is None else [tuple(dims)]


def _range(node: ir.Node) -> Shapes | None:
    bounds = [constant_array(value) for value in node.inputs]
    if any(bound is None for bound in bounds):
        return None
    start, limit, delta = (bound.item() for bound in bounds)  # type: ignore[union-attr]
    return [(max(0, math.ceil((limit - start) / delta)),)]


def _gather(node: ir.Node) -> Shapes:
    x, indices = _x(node), _x(node, 1)
    axis, batch = _axis(attribute(node, "axis", 0), len(x)), attribute(node, "batchDims", 0)
    return [(*x[:axis], *indices[batch:], *x[axis + 1 :])]


def _gather_nd(node: ir.Node) -> Shapes:
    x, indices = _x(node), _x(node, 1)
    return [(*indices[:-1], *x[indices[-1] :])]


def _embedding_lookup(node: ir.Node) -> Shapes:
    ids, table = _x(node), _x(node, 1)
    if len(ids) != 1:
        raise Mismatch(f"the ids {_text(ids)} are no vector")
    return [(*ids, *table[1:])]


def _reduce(node: ir.Node) -> Shapes | None:
    axes, x = _ints(node, 1), _x(node)
    if axes is None:
        return None
    over = {_axis(axis, len(x)) for axis in axes}
    if attribute(node, "keepDims", 0):
        return [tuple(1 if axis in over else dim for axis, dim in enumerate(x))]
    return [tuple(dim for axis, dim in enumerate(x) if axis not in over)]


def _arg(node: ir.Node) -> Shapes | None:
    axes, x = _ints(node, 1), _x(node)
    if axes is None:
        return None
    over = _axis(axes[0], len(x))
    return [(*x[:over], *x[over + 1 :])]


def _batch_matmul(node: ir.Node) -> Shapes:
    x, y = _x(node), _x(node, 1)
    if attribute(node, "adjointLhs"):
        x = (*x[:-2], x[-1], x[-2])
    if attribute(node, "adjointRhs"):
        y = (*y[:-2], y[-1], y[-2])
    if x[-1] != y[-2]:
        raise Mismatch(f"{x[-1]} columns times {y[-2]} rows")
    return [(*broadcast([x[:-2], y[:-2]]), x[-2], y[-1])]


def _fully_connected(node: ir.Node) -> Shapes | None:
    x, weight = _x(node), _x(node, 1)
    if attribute(node, "weightsFormat", 0):
        return None
    rows, columns = weight[-2:]
    if math.prod(x) % columns or (attribute(node, "keepNumDims") and x[-1] != columns):
        raise Mismatch(f"{_text(x)} times weights of {columns} columns")
    if len(node.inputs) > 2 and node.inputs[2] is not None and math.prod(_x(node, 2)) != rows:
        raise Mismatch(f"a bias of {math.prod(_x(node, 2))} for {rows} rows")
    if attribute(node, "keepNumDims"):
        return [(*x[:-1], rows)]
    return [(math.prod(x) // columns, rows)]


def _dynamic_update_slice(node: ir.Node) -> Shapes:
    x, update, start = _x(node), _x(node, 1), _x(node, 2)
    if len(x) != len(update) or any(n > dim for n, dim in zip(update, x, strict=True)):
        raise Mismatch(f"the update {_text(update)} does not fit into {_text(x)}")
    if math.prod(start) != len(x):
        raise Mismatch(f"{math.prod(start)} start indices for {len(x)} axes")
    return [x]


def _rms_norm(node: ir.Node) -> Shapes:
    x, weight = _x(node), _x(node, 1)
    if math.prod(weight) != x[-1]:
        raise Mismatch(f"a weight of {math.prod(weight)} for {x[-1]} columns")
    return [x]


def _rope(node: ir.Node) -> Shapes:
    x = _x(node)
    for operand in (1, 2):
        if broadcast([x, _x(node, operand)]) != x:
            raise Mismatch(f"the table {_text(_x(node, operand))} does not broadcast to {_text(x)}")
    return [x]


def _attention(node: ir.Node) -> Shapes:
    of = Attention.of(node)
    x, columns = shape_of(of.x), shape_of(of.x)[-1]
    for name in ("wq", "wk", "wv"):
        if shape_of(getattr(of, name))[-1] != columns:
            raise Mismatch(f"{name} has {shape_of(getattr(of, name))[-1]} columns, x has {columns}")
    if of.k_cache is not None or of.cos is not None:
        if shape_of(of.wo)[-1] != shape_of(of.wq)[0]:
            raise Mismatch(f"wo has {shape_of(of.wo)[-1]} columns, wq has {shape_of(of.wq)[0]} rows")
        if of.K == 0 or of.N % of.K or shape_of(of.wv)[0] != of.K * of.H:
            raise Mismatch(f"{of.N} query heads, {of.K} key heads, {shape_of(of.wv)[0]} rows of wv")
    if of.k_cache is not None:
        if of.v_cache is None or shape_of(of.v_cache) != shape_of(of.k_cache):
            raise Mismatch("the two caches have different shapes")
        if of.layout and of.S < of.T:
            raise Mismatch(f"{of.T} tokens, and a cache of {of.S}")
    return [(*x[:-1], shape_of(of.wo)[-2])]


def _core_attention(node: ir.Node) -> Shapes:
    of = CoreAttention.of(node)
    batch, heads, tokens, dim = shape_of(of.q)
    return [(batch, tokens, heads, dim)]


def _cumsum(node: ir.Node) -> Shapes:
    return [_x(node)]


def _pad(node: ir.Node) -> Shapes | None:
    sizes, x = _ints(node, 1), _x(node)
    if sizes is None:
        return None
    if len(sizes) != 2 * len(x):
        raise Mismatch(f"{len(sizes)} paddings for {len(x)} axes")
    return [tuple(dim + sizes[2 * k] + sizes[2 * k + 1] for k, dim in enumerate(x))]


def _shape(node: ir.Node) -> Shapes:
    return [(len(_x(node)),)]


_BINARY_OR_SELECT = {name for name, traits in BUILTIN.items() if traits.elementwise}
_BUILTIN: dict[str, Inference] = {
    **dict.fromkeys(_BINARY_OR_SELECT, _elementwise),
    **dict.fromkeys(("GELU", "RELU6", "RELU_N1_TO_1", "LEAKY_RELU", "ELU", "HARD_SWISH"), _unary),
    **dict.fromkeys(("ROUND", "SIGN"), _unary),
    **dict.fromkeys(("SOFTMAX", "LOG_SOFTMAX", "QUANTIZE", "DEQUANTIZE", "ZEROS_LIKE"), _unary),
    **dict.fromkeys(("SUM", "MEAN", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD"), _reduce),
    **dict.fromkeys(("REDUCE_ANY", "REDUCE_ALL"), _reduce),
    **dict.fromkeys(("ARG_MAX", "ARG_MIN"), _arg),
    **dict.fromkeys(("PAD", "PADV2"), _pad),
    "SELECT": _select,
    "RESHAPE": _reshape,
    "EXPAND_DIMS": _expand_dims,
    "SQUEEZE": _squeeze,
    "TRANSPOSE": _transpose,
    "BROADCAST_TO": _broadcast_to,
    "CONCATENATION": _concatenation,
    "PACK": _pack,
    "UNPACK": _unpack,
    "SPLIT": _split,
    "SPLIT_V": _split_v,
    "SLICE": _slice,
    "STRIDED_SLICE": _strided_slice,
    "TILE": _tile,
    "FILL": _fill,
    "RANGE": _range,
    "SHAPE": _shape,
    "GATHER": _gather,
    "GATHER_ND": _gather_nd,
    "EMBEDDING_LOOKUP": _embedding_lookup,
    "BATCH_MATMUL": _batch_matmul,
    "FULLY_CONNECTED": _fully_connected,
    "DYNAMIC_UPDATE_SLICE": _dynamic_update_slice,
    "CUMSUM": _cumsum,
    "RMS_NORM": _rms_norm,
    "ROPE": _rope,
    "ATTENTION": _attention,
}
_CUSTOM: dict[str, Inference] = dict.fromkeys(NAMES, _core_attention)
