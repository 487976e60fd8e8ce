"""Reference kernels in numpy: what each operator computes.

They fold constants, prove masks, and are what rewrites are tested against. They are slow, exact about shapes,
and cover decoder graphs. Source: TFLite's operator documentation and LiteRT's reference kernels. Circle's own
operators are defined here:

RMS_NORM(x [..., D], weight [D]; epsilon) = x / sqrt(mean(x^2) + epsilon) * weight, the mean over D.

ROPE(x [B, N, T, H], sin, cos; mode GPT_NEOX), with tables broadcast to x:
    x * cos + concat(-x[..., H/2:], x[..., :H/2]) * sin

`ATTENTION(x [1, T, D], wq [N*H, D], wk [K*H, D], wv [K*H, D], wo [D, N*H], cos,
           sin [1, T, H] or absent, mask or absent, k_cache, v_cache or absent, pos [1] or [T] or absent)`:

    q, k, v = x wq', x wk', x wv', split into heads. With cos and sin, q and k are rotated as by ROPE.
    With caches ([1, K, S, H] or [1, S, K, H]), k and v overwrite rows pos .. pos+T-1, in place.
    Attention goes over all S rows of the caches. Without caches it goes over k and v.
    scores = q k' / sqrt(H), query head n against key head n // (N/K).
    The mask is added if there is one. Else query t sees row j if j <= pos + t.
    result = softmax(scores) v, heads concatenated, times wo'.
  (Operand order: Samsung ONE's `circle_custom::attention`.)

`o2o.attention`, the core of attention without projections and caches, is defined in
`o2o.operators.core_attention`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.tensors import constant_array, is_constant, is_quantized
from o2o.model import CUSTOM_DOMAIN, DOMAIN, attribute, shape_of
from o2o.operators.attention import Attention
from o2o.operators.core_attention import NAMES, CoreAttention
from o2o.operators.traits import has_side_effects

Array = np.ndarray
Kernel = Callable[..., Array | Sequence[Array]]


class NotEvaluable(Exception):
    """The value depends on an unknown, or on an operator without a reference kernel."""


def evaluate(value: ir.Value, known: Mapping[ir.Value, Array]) -> Array:
    """Compute a value.

    Args:
        value: Any value.
        known: Numbers of the values from which it is computed.

    Returns:
        Its numbers.

    Raises:
        NotEvaluable: An operand is unknown, or an operator has no kernel.
    """
    return _Evaluation(known).value(value)


def function_of(value: ir.Value, unknown: ir.Value) -> Callable[[Array], Array]:
    """Prepare the computation of a value from one unknown: everything else is computed once.

    Args:
        value: Any value.
        unknown: The only unknown from which it is computed.

    Returns:
        A function from the numbers of `unknown` to the numbers of `value`.

    Raises:
        NotEvaluable: Another operand is unknown, or an operator has no kernel.
    """
    prepared = _Evaluation({})
    following = {unknown}
    steps: list[tuple[ir.Node, Kernel]] = []
    for node in producers(value):
        if following.isdisjoint(node.inputs):
            continue
        following.update(node.outputs)
        steps.append((node, prepared.kernel(node)))
        for operand in node.inputs:
            if operand is not None and operand not in following:
                prepared.value(operand)
    if value not in following:
        prepared.value(value)

    def compute(numbers: Array) -> Array:
        evaluation = _Evaluation({**prepared.known, unknown: numbers})
        for node, kernel in steps:
            evaluation.compute(node, kernel)
        return evaluation.known[value]

    return compute


def producers(value: ir.Value) -> list[ir.Node]:
    """Return the nodes that compute a value.

    Args:
        value: Any value.

    Returns:
        The nodes in graph order; none for a value that no node of a graph computes.
    """
    nodes: set[ir.Node] = set()
    pending = [value.producer()]
    while pending:
        node = pending.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            pending += [operand.producer() for operand in node.inputs if operand is not None]
    last = value.producer()
    if last is None or last.graph is None:
        return []
    return [node for node in last.graph if node in nodes]


def run_graph(graph: ir.Graph, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run a graph.

    Args:
        graph: The graph.
        feeds: Its inputs by name. ATTENTION updates caches among them in place.

    Returns:
        Its outputs by name.

    Raises:
        NotEvaluable: An operator has no kernel.
    """
    known = {value: np.asarray(feeds[value.name or ""]) for value in graph.inputs}
    computed = dict(run_nodes(graph, known))
    results = (computed[value] if value in computed else evaluate(value, known) for value in graph.outputs)
    return {value.name or "": result for value, result in zip(graph.outputs, results, strict=True)}


def run_nodes(graph: ir.Graph, known: Mapping[ir.Value, Array]) -> Iterator[tuple[ir.Value, Array]]:
    """Run the nodes of a graph in order. A result is kept only until its last user has run.

    Args:
        graph: The graph.
        known: Its inputs. ATTENTION updates caches among them in place. Also the numbers that quantized
            constants stand for: kernels take no others.

    Yields:
        Each result and its numbers.

    Raises:
        NotEvaluable: An operator has no kernel.
    """
    evaluation = _Evaluation(known)
    users = {value: len(value.uses()) for node in graph for value in node.outputs}
    for node in graph:
        evaluation.node(node)
        yield from ((value, evaluation.known[value]) for value in node.outputs)
        for value in node.inputs:
            if value is not None and value in users:
                users[value] -= 1
                if users[value] == 0:
                    evaluation.known.pop(value, None)


def has_kernel(node: ir.Node) -> bool:
    """Whether an operator has a kernel here.

    Args:
        node: Any node.

    Returns:
        True for an operator that `run_nodes` can run, on operands that its kernel takes.
    """
    return _kernel_of(node) is not None


def _kernel_of(node: ir.Node) -> Kernel | None:
    if node.domain == DOMAIN and (kernel := _KERNELS.get(node.op_type)) is not None:
        return kernel
    return _OTHER_KERNELS.get((node.domain, node.op_type))


def is_pure(node: ir.Node) -> bool:
    """Whether `node` is a pure function of its operands.

    Args:
        node: Any node.

    Returns:
        True if its operator has a kernel here and no side effects.
    """
    return node.domain == DOMAIN and node.op_type in _KERNELS and not has_side_effects(node)


def unknown_sources(value: ir.Value) -> list[ir.Value]:
    """Return the graph inputs and other unknowns from which `value` is computed.

    Args:
        value: Any value.

    Returns:
        Values without a producer that are not constants.
    """
    sources: dict[ir.Value, None] = {}
    seen: set[ir.Value] = set()
    pending = [value]
    while pending:
        current = pending.pop()
        if current in seen or is_constant(current):
            continue
        seen.add(current)
        producer = current.producer()
        if producer is None:
            sources[current] = None
        else:
            pending.extend(v for v in producer.inputs if v is not None)
    return list(sources)


class _Evaluation:
    def __init__(self, known: Mapping[ir.Value, Array]) -> None:
        self.known = dict(known)

    def value(self, value: ir.Value) -> Array:
        # Iterative, as graphs are deeper than Python's stack.
        pending = [value]
        while pending:
            current = pending[-1]
            if current in self.known:
                pending.pop()
                continue
            constant = constant_array(current)
            if constant is not None:
                self.known[current] = constant
                continue
            producer = current.producer()
            if producer is None:
                raise NotEvaluable(f"{current.name} is unknown")
            missing = [v for v in producer.inputs if v is not None and v not in self.known]
            if missing:
                pending.extend(missing)
            else:
                self.node(producer)
        return self.known[value]

    def node(self, node: ir.Node) -> None:
        kernel = self.kernel(node)
        for value in node.inputs:
            if value is not None:
                self.value(value)
        self.compute(node, kernel)

    def kernel(self, node: ir.Node) -> Kernel:
        kernel = _kernel_of(node)
        if kernel is None:
            raise NotEvaluable(f"{node.op_type} has no reference kernel")
        if not node.outputs:
            raise NotEvaluable(f"{node.op_type} has no outputs")
        operands = (value for value in (*node.inputs, *node.outputs) if value is not None)
        if any(is_quantized(value) and value not in self.known for value in operands):
            raise NotEvaluable(f"{node.op_type} on quantized numbers has no reference kernel")
        return kernel

    def compute(self, node: ir.Node, kernel: Kernel) -> None:
        inputs = [None if value is None else self.known[value] for value in node.inputs]
        try:
            results = kernel(node, *inputs)
        except (ValueError, IndexError, TypeError, ArithmeticError, ModelError) as error:
            raise NotEvaluable(f"{node.op_type} {node.outputs[0].name} is malformed: {error}") from error
        for value, result in zip(
            node.outputs, [results] if isinstance(results, np.ndarray) else results, strict=True
        ):
            dtype = value.dtype.numpy() if value.dtype is not None else result.dtype
            self.known[value] = np.asarray(_activate(node, result), dtype)


def _activate(node: ir.Node, x: Array) -> Array:
    """The activation fused into an operator: NONE, RELU, RELU_N1_TO_1, RELU6, TANH, SIGN_BIT."""
    kind = attribute(node, "fusedActivationFunction", 0)
    if kind == 0:
        return x
    if node.op_type == "CONCATENATION":
        raise NotEvaluable("CONCATENATION with a fused activation: runtimes disagree")
    bounds = {1: (0, np.inf), 2: (-1, 1), 3: (0, 6)}
    if kind in bounds:
        return np.clip(x, *bounds[kind])
    if kind == 4:
        return np.tanh(x)
    raise NotEvaluable(f"{node.op_type} with fused activation {kind}")


def slice_bounds(node: ir.Node, operands: Sequence[Array] = ()) -> list[tuple[int, int, int]]:
    """Return the bounds of a slice.

    Args:
        node: A SLICE or STRIDED_SLICE.
        operands: The numbers of its operands after the first; none for constant ones.

    Returns:
        (begin, end, step) for each axis.

    Raises:
        NotEvaluable: The bounds are not constant, or STRIDED_SLICE adds or removes axes.
    """
    shape = shape_of(node.inputs[0])  # type: ignore[arg-type]
    vectors: list[Array | None] = [*operands] or [constant_array(value) for value in node.inputs[1:]]
    if any(vector is None for vector in vectors):
        raise NotEvaluable(f"{node.op_type} has bounds that are not constant")
    if node.op_type == "SLICE":
        begin, size = ([int(x) for x in vector] for vector in vectors)  # type: ignore[union-attr]
        stops = [dim if n == -1 else b + n for b, n, dim in zip(begin, size, shape, strict=True)]
        return list(zip(begin, stops, [1] * len(shape), strict=True))
    if any(attribute(node, name, 0) for name in ("ellipsisMask", "newAxisMask", "shrinkAxisMask", "offset")):
        raise NotEvaluable("STRIDED_SLICE with ellipsis, new or shrunk axes")
    bounds = []
    for axis, (begin_, end_, step) in enumerate(zip(*vectors, strict=True)):
        first = None if attribute(node, "beginMask", 0) >> axis & 1 else int(begin_)
        last = None if attribute(node, "endMask", 0) >> axis & 1 else int(end_)
        start, stop, stride = slice(first, last, int(step)).indices(shape[axis])
        bounds.append((start, stop, stride))
    bounds += [(0, dim, 1) for dim in shape[len(bounds) :]]
    return bounds


def rotate_half(x: Array) -> Array:
    """Return concat(-x[..., H/2:], x[..., :H/2]).

    Args:
        x: [..., H].

    Returns:
        [..., H].
    """
    half = x.shape[-1] // 2
    return np.concatenate([-x[..., half:], x[..., :half]], -1)


def softmax(x: Array) -> Array:
    """Return the softmax over the last axis.

    Args:
        x: Any shape.

    Returns:
        The shape of `x`.
    """
    shifted = np.exp(x - x.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def _rms_norm(node: ir.Node, x: Array, weight: Array) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + attribute(node, "epsilon", 0.0)) * weight


def _rope(node: ir.Node, x: Array, sin: Array, cos: Array) -> Array:
    if attribute(node, "mode", 0) != 0:
        raise NotEvaluable("ROPE in a mode other than GPT_NEOX")
    return x * cos + rotate_half(x) * sin


def _attention(
    node: ir.Node,
    x: Array,
    wq: Array,
    wk: Array,
    wv: Array,
    wo: Array,
    cos: Array | None = None,
    sin: Array | None = None,
    mask: Array | None = None,
    k_cache: Array | None = None,
    v_cache: Array | None = None,
    pos: Array | None = None,
) -> Array:
    of = Attention.of(node)
    T, H, N, K = of.T, of.H, of.N, of.K
    q, k, v = ((x[0] @ w.T).reshape(T, -1, H).transpose(1, 0, 2) for w in (wq, wk, wv))  # [heads, T, H]
    if cos is not None and sin is not None:
        q, k = (y * cos.reshape(T, H) + rotate_half(y) * sin.reshape(T, H) for y in (q, k))
    start = int(pos.reshape(-1)[0]) if pos is not None else 0
    if k_cache is not None and v_cache is not None:
        if not all(cache is None or cache.producer() is None for cache in (of.k_cache, of.v_cache)):
            raise NotEvaluable("ATTENTION on a computed cache: writes in place would be lost")
        by_head = (0, 1, 2) if of.layout == "BNTH" else (1, 0, 2)
        rows = [cache[0].transpose(by_head) for cache in (k_cache, v_cache)]  # views [K, S, H]
        start = min(max(start, 0), rows[0].shape[1] - T)  # as DYNAMIC_UPDATE_SLICE does
        for cache, new in zip(rows, (k, v), strict=True):
            cache[:, start : start + T] = new
        k, v = rows
    S = k.shape[1]
    k, v = (np.repeat(y, N // K, 0) for y in (k, v))
    if mask is None:
        visible = np.arange(S)[None, :] <= start + np.arange(T)[:, None]
        mask = np.where(visible, 0, -np.inf)
    scores = q @ k.transpose(0, 2, 1) / math.sqrt(H) + np.broadcast_to(mask, (1, N, T, S))[0]
    y = softmax(scores) @ v
    return (y.transpose(1, 0, 2).reshape(1, T, N * H) @ wo.T).astype(x.dtype)


def core_attention(
    q: Array,
    k: Array,
    v: Array,
    position: int,
    scale: float,
    mask: Array | None = None,
    slopes: Array | None = None,
    sinks: Array | None = None,
    softcap: float = 0.0,
    window: int = 0,
) -> Array:
    """Compute the core of attention; see `o2o.operators.core_attention`.

    Args:
        q: [1, N, T, H].
        k: [1, K, S, H].
        v: [1, K, S, H].
        position: The position of the first query.
        scale: The factor of q k'.
        mask: Added to the scores, instead of causality and window; broadcast to [1, N, T, S].
        slopes: ALiBi's slope of each head, [N].
        sinks: One more logit of each head, [N].
        softcap: The bound of the scores; 0 for none.
        window: The number of keys that a query sees at most; 0 for all.

    Returns:
        [1, T, N, H].
    """
    N, T, K, S = q.shape[1], q.shape[2], k.shape[1], k.shape[2]
    k, v = (np.repeat(y, N // K, 1) for y in (k, v))
    scores = q @ k.swapaxes(-1, -2) * scale
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    distance = np.arange(S)[None, :] - (position + np.arange(T)[:, None])  # of the key from the query
    if slopes is not None:
        scores = scores + slopes.reshape(N, 1, 1) * distance
    if mask is not None:
        scores = scores + mask
    else:
        is_visible = (distance <= 0) & ((distance > -window) if window else True)
        scores = np.where(is_visible, scores, -np.inf)
    if sinks is not None:
        column = np.broadcast_to(sinks.reshape(1, N, 1, 1), (1, N, T, 1))
        scores = np.concatenate([scores, column], -1)
    return np.asarray((softmax(scores)[..., :S] @ v).swapaxes(1, 2), q.dtype)


def _core_attention(
    node: ir.Node,
    q: Array,
    k: Array,
    v: Array,
    position: Array,
    mask: Array | None = None,
    slopes: Array | None = None,
    sinks: Array | None = None,
) -> Array:
    of = CoreAttention.of(node)
    start = int(position.reshape(-1)[0])
    return core_attention(q, k, v, start, of.scale, mask, slopes, sinks, of.softcap, of.window)


def _fully_connected(node: ir.Node, x: Array, w: Array, bias: Array | None = None) -> Array:
    if attribute(node, "weightsFormat", 0):
        raise NotEvaluable("FULLY_CONNECTED with shuffled weights")
    y = x.reshape(-1, w.shape[-1]) @ w.reshape(-1, w.shape[-1]).T
    if bias is not None:
        y = y + bias
    return y.reshape(shape_of(node.outputs[0]))


def _select(node: ir.Node, condition: Array, x: Array, y: Array) -> Array:
    """A vector of conditions selects along the first axis. SELECT_V2 broadcasts instead."""
    rows = condition.ndim == 1 and x.ndim > 1
    return np.where(condition.reshape(-1, *[1] * (x.ndim - 1)) if rows else condition, x, y)


def _gather(node: ir.Node, x: Array, indices: Array) -> Array:
    if attribute(node, "batchDims", 0):
        raise NotEvaluable("GATHER by batch")
    return np.take(x, indices, attribute(node, "axis", 0))


def _gather_nd(node: ir.Node, x: Array, indices: Array) -> Array:
    return np.asarray(x[tuple(np.moveaxis(indices, -1, 0))])


def _batch_matmul(node: ir.Node, x: Array, y: Array) -> Array:
    x = x.swapaxes(-1, -2) if attribute(node, "adjointLhs") else x
    y = y.swapaxes(-1, -2) if attribute(node, "adjointRhs") else y
    return x @ y


def _dynamic_update_slice(node: ir.Node, operand: Array, update: Array, start: Array) -> Array:
    result = operand.copy()
    limits = [limit - size for limit, size in zip(operand.shape, update.shape, strict=True)]
    begin = [min(max(int(b), 0), limit) for b, limit in zip(start, limits, strict=True)]
    result[tuple(slice(b, b + n) for b, n in zip(begin, update.shape, strict=True))] = update
    return result


def _sliced(node: ir.Node, x: Array, *bounds: Array) -> Array:
    return x[tuple(slice(b, e if e >= 0 else None, s) for b, e, s in slice_bounds(node, bounds))]


def _reduce(function: Callable[..., Array]) -> Kernel:
    def kernel(node: ir.Node, x: Array, axes: Array) -> Array:
        over = tuple(int(axis) for axis in np.reshape(axes, -1))
        return np.asarray(function(x, axis=over, keepdims=bool(attribute(node, "keepDims", 0))))

    return kernel


def _split(node: ir.Node, axis: Array, x: Array) -> Sequence[Array]:
    return np.split(x, len(node.outputs), int(axis))


def _split_v(node: ir.Node, x: Array, sizes: Array, axis: Array) -> Sequence[Array]:
    axis_ = int(np.reshape(axis, -1)[0])
    lengths = [shape_of(output)[axis_] for output in node.outputs]
    return np.split(x, np.cumsum(lengths)[:-1], axis_)


def _gelu(node: ir.Node, x: Array) -> Array:
    if attribute(node, "approximate", False):
        return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    erf = np.vectorize(math.erf, otypes=[np.float64])
    return np.asarray(0.5 * x * (1 + erf(x / math.sqrt(2))))


def _each(function: Callable[..., Any]) -> Kernel:
    """A kernel of an operator without relevant options."""
    return lambda node, *inputs: np.asarray(function(*inputs))


_KERNELS: dict[str, Kernel] = {
    "ADD": _each(np.add),
    "SUB": _each(np.subtract),
    "MUL": _each(np.multiply),
    "DIV": _each(lambda x, y: x / y if x.dtype.kind == "f" else np.trunc(x / y)),
    "FLOOR_DIV": _each(np.floor_divide),
    "FLOOR_MOD": _each(np.mod),
    "MAXIMUM": _each(np.maximum),
    "MINIMUM": _each(np.minimum),
    "POW": _each(np.power),
    "SQUARED_DIFFERENCE": _each(lambda x, y: (x - y) ** 2),
    "NEG": _each(np.negative),
    "ABS": _each(np.abs),
    "SQRT": _each(np.sqrt),
    "RSQRT": _each(lambda x: 1 / np.sqrt(x)),
    "SQUARE": _each(np.square),
    "EXP": _each(np.exp),
    "LOG": _each(np.log),
    "SIN": _each(np.sin),
    "COS": _each(np.cos),
    "TANH": _each(np.tanh),
    "LOGISTIC": _each(lambda x: 1 / (1 + np.exp(-x))),
    "RELU": _each(lambda x: np.maximum(x, 0)),
    "GELU": _gelu,
    "FLOOR": _each(np.floor),
    "CEIL": _each(np.ceil),
    "ROUND": _each(np.rint),
    "CAST": _each(lambda x: x),  # `node` casts every result to its value's dtype
    "LESS": _each(np.less),
    "LESS_EQUAL": _each(np.less_equal),
    "GREATER": _each(np.greater),
    "GREATER_EQUAL": _each(np.greater_equal),
    "EQUAL": _each(np.equal),
    "NOT_EQUAL": _each(np.not_equal),
    "LOGICAL_AND": _each(np.logical_and),
    "LOGICAL_OR": _each(np.logical_or),
    "LOGICAL_NOT": _each(np.logical_not),
    "SELECT": _select,
    "SELECT_V2": _each(np.where),
    "RESHAPE": lambda node, x, *shape: x.reshape(shape_of(node.outputs[0])),
    "EXPAND_DIMS": lambda node, x, axis: x.reshape(shape_of(node.outputs[0])),
    "SQUEEZE": lambda node, x: x.reshape(shape_of(node.outputs[0])),
    "TRANSPOSE": _each(lambda x, axes: x.transpose([int(axis) for axis in axes])),
    "BROADCAST_TO": _each(lambda x, shape: np.broadcast_to(x, [int(dim) for dim in shape])),
    "CONCATENATION": lambda node, *xs: np.concatenate(xs, attribute(node, "axis", 0)),
    "PACK": lambda node, *xs: np.stack(xs, attribute(node, "axis", 0)),
    "SPLIT": _split,
    "SPLIT_V": _split_v,
    "SLICE": _sliced,
    "STRIDED_SLICE": _sliced,
    "TILE": _each(lambda x, times: np.tile(x, [int(n) for n in times])),
    "FILL": _each(lambda dims, x: np.full([int(dim) for dim in dims], x)),
    "RANGE": _each(lambda start, limit, delta: np.arange(start.item(), limit.item(), delta.item())),
    "SHAPE": _each(lambda x: np.asarray(x.shape)),
    "GATHER": _gather,
    "GATHER_ND": _gather_nd,
    "EMBEDDING_LOOKUP": _each(lambda i, x: x[i]),
    "MEAN": _reduce(np.mean),
    "SUM": _reduce(np.sum),
    "REDUCE_MAX": _reduce(np.max),
    "REDUCE_MIN": _reduce(np.min),
    "SOFTMAX": lambda node, x: softmax(x * attribute(node, "beta", 1.0)),
    "BATCH_MATMUL": _batch_matmul,
    "FULLY_CONNECTED": _fully_connected,
    "DYNAMIC_UPDATE_SLICE": _dynamic_update_slice,
    "RMS_NORM": _rms_norm,
    "ROPE": _rope,
    "ATTENTION": _attention,
}
_OTHER_KERNELS: dict[tuple[str, str], Kernel] = {
    **{(CUSTOM_DOMAIN, name): _core_attention for name in NAMES},
    (DOMAIN, "DEQUANTIZE"): _each(lambda x: x),  # of what a quantized constant stands for, or of float16
}
"""Operators that are not `is_pure`: passes neither merge nor move them."""
