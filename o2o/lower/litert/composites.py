"""Attention and RMSNorm in STABLEHLO_COMPOSITE, by the names that LiteRT's delegates look for.

    odml.rms_norm                       x [.., D], weight [D]; `epsilon`
    odml.scaled_dot_product_attention   q [1, T, N, H], k and v [1, S, K, H], mask [1, 1, T or 1, S]; `scale`,
                                        and `logit_cap` for scores that are capped -> [1, T, N, H]

These are the names, operands and attributes that litert-torch's `generative.layers` emit (version 1) and
that LiteRT's XNNPACK delegate reads (`VisitScaledDotAttentionCompositeNode`). Others run the graph
inside. The mask is always there, zeros if need be: delegates differ in what a missing one means.

LiteRT 2.3.0's XNNPACK takes every form of attention that is wrapped here (one head of keys, as many as of
queries, groups; one token or several; masks of one row or of T; capped) and differs by 5e-6 at most from what
is inside. It does not take norms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import is_quantized, numbers
from o2o.lower.litert.rms_norm import lower_rms_norm
from o2o.lower.litert.sdpa import swap_heads
from o2o.model import DOMAIN, Model, is_dynamic, shape_of
from o2o.rewriting.attention.core import LabeledValue, Mask, Sdpa, keys, match_sdpa, queries
from o2o.rewriting.axes import Axes, Factors
from o2o.rewriting.builder import Builder
from o2o.rewriting.dead_code_elimination import remove_dead_constants, remove_dead_nodes
from o2o.rewriting.matchers import MatchFailure, fail
from o2o.rewriting.outline import decompositions, nodes_between, outline
from o2o.rewriting.rewire import replace_output
from o2o.rewriting.rms_norm import RMS_NORM_ANCHORS, match_rms_norm
from o2o.rewriting.topological_sort import topological_sort

ATTENTION = "odml.scaled_dot_product_attention"
RMS_NORM = "odml.rms_norm"

Explain = Callable[[ir.Graph, ir.Node, MatchFailure], None]


def wrap_composites(model: Model, explain: Explain | None = None) -> Counter[str]:
    """Wrap every attention core and RMSNorm of `model`, in place; how many, by the composites' names.

    Circle's own RMS_NORM is spelled in builtins inside; its ATTENTION is left to
    `o2o.lower.litert.attention`. What
    is inside of a composite already is left alone. explain: told each candidate left alone, and why.
    """
    wrapped: Counter[str] = Counter()
    inside = decompositions(model)
    for graph in [graph for graph in model.graphs if graph not in inside]:
        _spell_norms(model, graph)
        attention = _Attention(model, graph)
        for node in list(graph):
            if node.domain != DOMAIN or node.graph is not graph:
                continue
            try:
                if node.op_type in RMS_NORM_ANCHORS:
                    _wrap_norm(model, graph, node)
                    wrapped[RMS_NORM] += 1
                elif node.op_type == "SOFTMAX":
                    attention.wrap(node)
                    wrapped[ATTENTION] += 1
            except MatchFailure as reason:
                if explain is not None:
                    explain(graph, node, reason)
        remove_dead_nodes(graph)
        remove_dead_constants(graph)
        topological_sort(graph)
    return wrapped


def _spell_norms(model: Model, graph: ir.Graph) -> None:
    for node in list(graph):
        ends = [value for value in (*node.inputs, *node.outputs) if value is not None]
        if node.op_type == "RMS_NORM" and all(_is_plain(value) for value in ends):
            lower_rms_norm(model, graph, node)
            graph.remove(node, safe=True)


def _wrap_norm(model: Model, graph: ir.Graph, root: ir.Node) -> None:
    norm = match_rms_norm(root)
    y = norm.last.outputs[0]
    inputs = [norm.x, norm.weight]
    _require_plain(*inputs, y)
    outline(model, graph, nodes_between(inputs, [y]), inputs, [y], RMS_NORM, {"epsilon": norm.epsilon})


class _Attention:
    """Wraps the cores of one graph."""

    def __init__(self, model: Model, graph: ir.Graph) -> None:
        self.model, self.graph = model, graph
        self.masks: dict[tuple[int, int], ir.Value] = {}  # which layers share, by where they come from

    def wrap(self, softmax: ir.Node) -> None:
        """Spell the core around `softmax` anew, in the composite's layout, and outline that."""
        core = match_sdpa(softmax)
        factors = core.factors
        operands = [core.q.value, core.k.value, core.v.value]
        _require_plain(*operands, core.result.value, *([core.mask.value] if core.mask else []))
        old = core.result.value
        op = Builder(self.graph, before=core.last, prefix=f"{old.name}/")
        wanted = (queries(factors), keys(factors), keys(factors))
        inputs = [
            _arranged(op, factors, placed, axes, name)
            for placed, axes, name in zip((core.q, core.k, core.v), wanted, ("q", "k", "v"), strict=True)
        ]
        inputs.append(self._mask(op, core))
        y = _spelled(op, core, *inputs)
        result = _arranged(op, factors, LabeledValue(y, queries(factors)), core.result.axes, "result")
        result = op.reshape(result, shape_of(old), name="result")
        replace_output(self.model, old, result)
        attributes = {"scale": core.scale} | ({"logit_cap": core.cap} if core.cap is not None else {})
        outline(self.model, self.graph, nodes_between(inputs, [y]), inputs, [y], ATTENTION, attributes)

    def _mask(self, op: Builder, core: Sdpa) -> ir.Value:
        """[1, 1, T or 1, S], made once for all layers that have the same."""
        S = core.factors.sizes["S"]
        key = (0, S) if core.mask is None else (id(core.mask.value), core.mask.rows)
        if key not in self.masks:
            self.masks[key] = _one_head(op, core.mask, S)
        return self.masks[key]


def _one_head(op: Builder, mask: Mask | None, S: int) -> ir.Value:
    if mask is None:
        return op.constant(np.zeros((1, 1, 1, S), np.float32), "no_mask")
    shape = [1, 1, mask.rows, S]
    if mask.repeated == 1:
        return op.reshape(mask.value, shape, name="mask")
    if (array := numbers(mask.value)) is not None:
        return op.constant(array.reshape(-1, S)[: mask.rows].reshape(shape), "mask")
    all_rows = op.reshape(mask.value, [1, 1, mask.rows * mask.repeated, S], name="masks")
    return op.slice(all_rows, [0] * 4, shape, name="mask")


def _spelled(op: Builder, core: Sdpa, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value) -> ir.Value:
    """The decomposition: operands and result in the composite's layout, the group's queries as rows."""
    K, G, T, S, H = (core.factors.sizes[name] for name in "KGTSH")
    N = K * G

    def product(x: ir.Value, y: ir.Value, columns: int, name: str, *, adjoint: bool) -> ir.Value:
        shape = [1, K, G * T, columns]
        x = op.reshape(x, [1, K, G * T, shape_of(x)[-1]], name=f"{name}_groups")
        z = op.node("BATCH_MATMUL", [x, y], shape, name=name, adjointLhs=False, adjointRhs=adjoint)
        return op.reshape(z, [1, N, T, columns], name=f"{name}_heads")

    def number(operator: str, x: ir.Value, c: float, name: str) -> ir.Value:
        return op.node(operator, [x, op.constant(c, name, np.float32)], shape_of(x), name=f"{name}_applied")

    q, k, v = (swap_heads(op, x) for x in (q, k, v))  # [1, heads, T or S, H]
    scores = product(number("MUL", q, core.scale, "scale"), k, S, "scores", adjoint=True)
    if core.cap is not None:
        scores = op.node("TANH", [number("DIV", scores, core.cap, "cap")], shape_of(scores), name="bounded")
        scores = number("MUL", scores, core.cap, "uncap")
    scores = op.node("ADD", [scores, mask], [1, N, T, S], name="masked")
    weights = op.node("SOFTMAX", [scores], [1, N, T, S], name="weights", beta=1.0)
    return swap_heads(op, product(weights, v, H, "mixed", adjoint=False))


def _arranged(op: Builder, factors: Factors, placed: LabeledValue, wanted: Axes, name: str) -> ir.Value:
    """`placed` with the axes `wanted`: reshaped when these are in the same order, else transposed."""
    units = [axis for axis in wanted if axis]
    there = [name for axis in placed.axes for name in axis]
    if [name for axis in units for name in axis] == there:
        return op.reshape(placed.value, factors.shape(wanted), name=name)
    order = sorted(range(len(units)), key=lambda i: there.index(units[i][0]))
    if [name for i in order for name in units[i]] != there:  # a unit is torn apart
        units = [(name,) for axis in units for name in axis]
        order = sorted(range(len(units)), key=lambda i: there.index(units[i][0]))
    x = op.reshape(placed.value, [1, *factors.shape(tuple(units[i] for i in order))], name=name)
    x = op.transpose(x, [0, *(1 + order.index(i) for i in range(len(units)))], name=name)
    return op.reshape(x, factors.shape(wanted), name=name)


def _is_plain(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT and not is_quantized(value) and not is_dynamic(value)


def _require_plain(*values: ir.Value) -> None:
    for value in values:
        if not _is_plain(value):
            fail("it is not float32 of a fixed shape", value)
