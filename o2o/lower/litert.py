"""Circle -> TFLite, as LiteRT likes it: Circle's own operators spelled in TFLite builtins.

RMS_NORM and ROPE become the arithmetic that they stand for. ATTENTION becomes projections, a
DYNAMIC_UPDATE_SLICE into each cache, and two BATCH_MATMULs in which the query heads of a group are rows, so
that no key is ever repeated. A cache that ATTENTION updates in place becomes an input and an output
(`present_key_0` for `past_key_0`): bind both to one buffer and it stays in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from o2o.attention import POSITION, Attention, writes_cache
from o2o.contract import role_of
from o2o.errors import ModelError
from o2o.formats.constants import is_quantized
from o2o.formats.schema import TFLITE
from o2o.lower.equal import merge_equal
from o2o.model import CUSTOM_DOMAIN, Model, attribute, is_dynamic, shape_of
from o2o.rewriting.build import Builder, fresh_name
from o2o.rewriting.clean import inner_graphs, remove_dead_constants, remove_dead_nodes
from o2o.rewriting.io import replace_output
from o2o.rewriting.match import made_by

# The versions from which LiteRT registers an operator, where that is not 1.
MINIMUM_VERSIONS = {"BROADCAST_TO": 2}
HIDDEN = -1e9  # its softmax weight is exactly 0


def lower(model: Model) -> Model:
    """`model` as TFLite, changed in place and returned. Raises ModelError for what TFLite cannot say."""
    inner = {inner for graph in model.graphs for node in graph for inner in inner_graphs(node)}
    for graph in model.graphs:
        for node in list(graph):
            lowering = _LOWERINGS.get(node.op_type)
            if lowering is not None and node.domain != CUSTOM_DOMAIN:
                _check(model, graph, node)
                if writes_cache(node) and graph in inner:
                    raise ModelError(
                        f"{_called(model, graph, node)} writes caches in a graph that is run by another"
                    )
                lowering(model, graph, node)
                graph.remove(node, safe=True)
        remove_dead_nodes(graph)
        merge_equal(model, graph)
        remove_dead_nodes(graph)
        remove_dead_constants(graph)
        for node in graph:
            if node.domain == CUSTOM_DOMAIN:
                continue
            if node.op_type not in TFLITE.operator_codes:
                raise ModelError(f"LiteRT has no operator {_called(model, graph, node)}")
            node.version = max(node.version or 1, MINIMUM_VERSIONS.get(node.op_type, 1))
    model.format = "tflite"
    model.fields.pop("version", None)
    return model


def _called(model: Model, graph: ir.Graph, node: ir.Node) -> str:
    name = node.outputs[0].name if node.outputs else "?"
    return f"{node.op_type} ({name} in {model.label(graph)})"


def _check(model: Model, graph: ir.Graph, node: ir.Node) -> None:
    """Raises ModelError for operands that what is built here would not compute with."""
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        position = index == POSITION and value.dtype in (ir.DataType.INT32, ir.DataType.INT64)
        if is_quantized(value) or not (value.dtype == ir.DataType.FLOAT or position):
            raise ModelError(f"{_called(model, graph, node)}: {value.name} is {value.dtype}, not float32")
        if is_dynamic(value):
            raise ModelError(f"{_called(model, graph, node)}: {value.name} has no fixed shape")


def _rms_norm(model: Model, graph: ir.Graph, node: ir.Node) -> None:
    x, weight = node.inputs
    assert x is not None
    assert weight is not None
    old = node.outputs[0]
    op = Builder(graph, before=node, prefix=f"{old.name}/")
    shape = shape_of(x)
    mean_shape = [*shape[:-1], 1]
    axis = op.constant([len(shape) - 1], "axis", np.int32)
    mean = op.node("MEAN", [op.node("MUL", [x, x], shape, name="square"), axis], mean_shape, keepDims=True)
    epsilon = op.constant(attribute(node, "epsilon", 0.0), "epsilon", np.float32)
    root = op.node("RSQRT", [op.node("ADD", [mean, epsilon], mean_shape)], mean_shape)
    normalised = op.node("MUL", [x, root], shape, name="normalised")
    replace_output(model, old, op.node("MUL", [normalised, weight], shape, name="scaled"))


def rotate(op: Builder, x: ir.Value, cos: ir.Value, sin: ir.Value) -> ir.Value:
    """x [.., H] rotated by tables that broadcast to it (`o2o.reference`, ROPE)."""
    shape = shape_of(x)
    half = shape[-1] // 2
    lower_, upper = (
        op.node(
            "SLICE",
            [
                x,
                op.constant([0] * (len(shape) - 1) + [begin], f"{name}_begin", np.int32),
                op.constant([*shape[:-1], half], "half", np.int32),
            ],
            [*shape[:-1], half],
            name=name,
        )
        for name, begin in (("lower", 0), ("upper", half))
    )
    negative = op.node("NEG", [upper], shape_of(upper))
    turned = op.node("CONCATENATION", [negative, lower_], shape, name="turned", axis=len(shape) - 1)
    straight = op.node("MUL", [x, cos], shape, name="times_cos")
    return op.node(
        "ADD", [straight, op.node("MUL", [turned, sin], shape, name="times_sin")], shape, name="rotated"
    )


def _rope(model: Model, graph: ir.Graph, node: ir.Node) -> None:
    x, sin, cos = node.inputs
    old = node.outputs[0]
    if attribute(node, "mode", 0) != 0:
        raise ModelError(f"ROPE {old.name} rotates neighbours (GPT_J): only GPT_NEOX can be lowered")
    assert x is not None
    assert sin is not None
    assert cos is not None
    replace_output(model, old, rotate(Builder(graph, before=node, prefix=f"{old.name}/"), x, cos, sin))


def _attention(model: Model, graph: ir.Graph, node: ir.Node) -> None:
    """[1, T, D] -> [1, T, D]; see `o2o.reference` for what is spelled here."""
    of = Attention.of(node)
    T, N, K, H, S = of.T, of.N, of.K, of.H, of.S
    G = N // K
    old = node.outputs[0]
    op = Builder(graph, before=node, prefix=f"{old.name}/")

    def heads(w: ir.Value, count: int, name: str) -> ir.Value:
        """x w' as [1, T, count, H]."""
        y = op.node(
            "FULLY_CONNECTED",
            [of.x, w, None],
            [1, T, count * H],
            name=name,
            keepNumDims=True,
            weightsFormat=0,
            fusedActivationFunction=0,
        )
        return op.reshape(y, [1, T, count, H], name=f"{name}_heads")

    q, k, v = heads(of.wq, N, "q"), heads(of.wk, K, "k"), heads(of.wv, K, "v")
    q, k, v = (_heads_first(op, y) for y in (q, k, v))  # [1, heads, T, H]
    if of.cos is not None and of.sin is not None:
        cos, sin = (op.reshape(table, [1, 1, T, H], name="table") for table in (of.cos, of.sin))
        q, k = rotate(op, q, cos, sin), rotate(op, k, cos, sin)
    if of.k_cache is not None and of.v_cache is not None:
        start = _start(op, of)
        k = _update(model, graph, op, of.k_cache, k, start, of.layout, "key")
        v = _update(model, graph, op, of.v_cache, v, start, of.layout, "value")
    scale = op.constant(H**-0.5, "scale", np.float32)
    q = op.node("MUL", [q, scale], [1, N, T, H], name="scaled")
    q = op.reshape(q, [1, K, G * T, H], name="groups")
    scores = op.node(
        "BATCH_MATMUL", [q, k], [1, K, G * T, S], name="scores", adjointLhs=False, adjointRhs=True
    )
    scores = op.node("ADD", [scores, _mask(op, of, G)], [1, K, G * T, S], name="masked")
    weights = op.node("SOFTMAX", [scores], [1, K, G * T, S], name="weights", beta=1.0)
    y = op.node(
        "BATCH_MATMUL", [weights, v], [1, K, G * T, H], name="mixed", adjointLhs=False, adjointRhs=False
    )
    y = _heads_first(op, op.reshape(y, [1, N, T, H], name="ungrouped"))
    y = op.reshape(y, [1, T, N * H], name="joined")
    new = op.node(
        "FULLY_CONNECTED",
        [y, of.wo, None],
        shape_of(old),
        name="output",
        keepNumDims=True,
        weightsFormat=0,
        fusedActivationFunction=0,
    )
    replace_output(model, old, new)


def _heads_first(op: Builder, x: ir.Value) -> ir.Value:
    """[1, a, b, H] -> [1, b, a, H]: a reshape when a or b is 1."""
    one, a, b, H = shape_of(x)
    if 1 in (a, b):
        return op.reshape(x, [one, b, a, H], name="swapped")
    return op.transpose(x, (0, 2, 1, 3), name="swapped")


def _position(op: Builder, of: Attention) -> ir.Value:
    """The position of the first token, int32 [1]."""
    pos = of.pos
    if pos is None:
        return op.constant([0], "pos", np.int32)
    if pos.dtype != ir.DataType.INT32:
        pos = op.node("CAST", [pos], shape_of(pos), ir.DataType.INT32, name="pos")
    if shape_of(pos) not in ((), (1,)):
        pos = op.reshape(pos, [of.T])
        first = op.constant([0], "first", np.int32), op.constant([1], "one", np.int32)
        pos = op.node("SLICE", [pos, *first], [1], name="pos")
    return op.reshape(pos, [1])


def _start(op: Builder, of: Attention) -> ir.Value:
    """Where DYNAMIC_UPDATE_SLICE writes, int32 [4]: the position on the token axis, 0 elsewhere."""
    zeros = [op.constant([0] * count, "zeros", np.int32) for count in (1, 2)]
    before, after = zeros[::-1] if of.layout == "BNTH" else zeros
    return op.node("CONCATENATION", [before, _position(op, of), after], [4], name="start", axis=0)


def _update(
    model: Model,
    graph: ir.Graph,
    op: Builder,
    cache: ir.Value,
    new: ir.Value,
    start: ir.Value,
    layout: str,
    kind: str,
) -> ir.Value:
    """Write `new` [1, K, T, H] into `cache` and give the cache out; all its rows as [1, K, S, H]."""
    if layout == "BTNH":
        new = _heads_first(op, new)
    updated = op.node("DYNAMIC_UPDATE_SLICE", [cache, new, start], shape_of(cache), name=f"{kind}s")
    _give_out(model, graph, cache, updated, kind)
    others = [use for use in cache.uses() if use.node not in (op.before, updated.producer())]
    if others:
        nodes = list(graph)
        behind = set(nodes[nodes.index(op.before) + 1 :])  # type: ignore[arg-type]
        for use in others:
            if use.node in behind:  # it sees what was written
                use.node.replace_input_with(use.idx, updated)
    return updated if layout == "BNTH" else op.transpose(updated, (0, 2, 1, 3), name=f"{kind}s_by_head")


def _give_out(model: Model, graph: ir.Graph, cache: ir.Value, updated: ir.Value, kind: str) -> None:
    """Make the updated cache an output, in the place of one that is the same by its role."""
    if not cache.is_graph_input():
        raise ModelError(f"ATTENTION writes {cache.name} in place, which is no input of {model.label(graph)}")
    if cache.is_graph_output():
        raise ModelError(f"ATTENTION writes {cache.name} in place, which {model.label(graph)} also gives out")
    told = role_of(cache)
    if told is not None:
        role = replace(told, kind=told.kind.removesuffix("_cache"))  # type: ignore[arg-type]
        updated.meta["role"] = role
        for value in graph.outputs:
            node = made_by(value, "DYNAMIC_UPDATE_SLICE")
            if role_of(value) == role and node is not None and node.inputs[0] is cache and not value.uses():
                replace_output(model, value, updated)
                return
    stem = cache.name or kind
    name = stem.replace("past_", "present_", 1) if stem.startswith("past_") else f"{stem}_out"
    public = {name for signature in model.signatures_of(graph) for name in signature.outputs}
    updated.name = fresh_name(graph, name)
    while updated.name in public:
        updated.name = fresh_name(graph, name)
    graph.outputs.append(updated)
    for signature in model.signatures_of(graph):
        signature.outputs[updated.name] = updated


def _mask(op: Builder, of: Attention, G: int) -> ir.Value:
    """What is added to scores [1, K, G*T, S], queries of one group below each other."""
    T, S = of.T, of.S
    if of.mask is not None:
        return _grouped(op, of.mask, G, T)
    query = np.tile(np.arange(T, dtype=np.int32), G if T > 1 else 1)[:, None]  # [G*T, 1], or [1, 1]
    key = np.arange(S, dtype=np.int32)[None, :]
    if of.pos is None:
        return op.constant(np.where(key <= query, 0, HIDDEN).astype(np.float32), "causal")
    position = op.reshape(_position(op, of), [1, 1], name="position")
    rows = op.node("ADD", [position, op.constant(query, "queries")], query.shape, name="rows")
    shape = [query.shape[0], S]
    visible = op.node("LESS_EQUAL", [op.constant(key, "keys"), rows], shape, ir.DataType.BOOL, name="visible")
    shown, hidden = op.constant(0.0, "shown", np.float32), op.constant(HIDDEN, "hidden", np.float32)
    return op.node("SELECT_V2", [visible, shown, hidden], shape, ir.DataType.FLOAT, name="mask")


def _grouped(op: Builder, mask: ir.Value, G: int, T: int) -> ir.Value:
    """The mask [.., T, S] of one head, for G heads whose queries are below each other: [1, 1, G*T, S]."""
    *_, rows, columns = (1, 1, *shape_of(mask))
    mask = op.reshape(mask, [1, 1, rows, columns], name="mask")
    if G == 1 or rows == 1:
        return mask
    return op.node("CONCATENATION", [mask] * G, [1, 1, G * T, columns], name="mask_groups", axis=2)


_LOWERINGS: dict[str, Callable[[Model, ir.Graph, ir.Node], None]] = {
    "RMS_NORM": _rms_norm,
    "ROPE": _rope,
    "ATTENTION": _attention,
}
