"""Attention and RMSNorm as STABLEHLO_COMPOSITE, under the names that LiteRT's delegates know.

    odml.rms_norm                       x [..., D], weight [D]; `epsilon`
    odml.scaled_dot_product_attention   q [1, T, N, H], k and v [1, S, K, H], mask [1, 1, T or 1, S]; `scale`,
                                        and `logit_cap` for capped scores -> [1, T, N, H]

litert-torch's `generative.layers` emit these names, operands and attributes (version 1). LiteRT's XNNPACK
delegate reads them (`VisitScaledDotAttentionCompositeNode`). Other runtimes run the decomposition, a
subgraph. The mask is always there, zeros if need be: delegates disagree about a missing one.

XNNPACK in LiteRT 2.3.0 computes every form of attention that is wrapped here. These are any number of key
heads and tokens, masks of one row or T rows, and capped scores. It stays within 5e-6 of the decomposition. It
does not compute norms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import is_quantized
from o2o.lower.litert.rms_norm import lower_rms_norm
from o2o.model import DOMAIN, Model, is_dynamic, shape_of
from o2o.rewriting.attention.expand_attention import swap_heads
from o2o.rewriting.attention.layouts import LabeledValue, in_layout
from o2o.rewriting.attention.mask_operand import MaskOperands
from o2o.rewriting.attention.sdpa import Sdpa, by_token, match_sdpa
from o2o.rewriting.builder import Builder
from o2o.rewriting.dead_code_elimination import remove_dead_constants, remove_dead_nodes
from o2o.rewriting.matchers import MatchFailure, fail
from o2o.rewriting.normalization import NORM_ANCHORS
from o2o.rewriting.outline import decompositions, nodes_between, outline
from o2o.rewriting.rewire import replace_output
from o2o.rewriting.rms_norm import match_rms_norm
from o2o.rewriting.topological_sort import topological_sort

ATTENTION = "odml.scaled_dot_product_attention"
RMS_NORM = "odml.rms_norm"

Explain = Callable[[ir.Graph, ir.Node, MatchFailure], None]


def wrap_composites(model: Model, explain: Explain | None = None) -> Counter[str]:
    """Wrap every scaled dot-product attention and RMSNorm of a model in a composite, in place.

    Circle's RMS_NORM is wrapped too. Its ATTENTION is not: `o2o.lower.litert.attention` lowers it first. The
    decompositions of composites that are already there are left alone.

    Args:
        model: A Circle or TFLite model.
        explain: Called for each candidate that is left alone, with the reason.

    Returns:
        How many composites of each name were added.
    """
    wrapped: Counter[str] = Counter()
    inside = decompositions(model)
    for graph in [graph for graph in model.graphs if graph not in inside]:
        _lower_norms(model, graph)
        attention = _AttentionWrapper(model, graph)
        for node in list(graph):
            if node.domain != DOMAIN or node.graph is not graph:
                continue
            try:
                if node.op_type in NORM_ANCHORS:
                    _wrap_norm(model, graph, node)
                    wrapped[RMS_NORM] += 1
                elif node.op_type == "SOFTMAX":
                    attention.wrap(node)
                    wrapped[ATTENTION] += 1
            except MatchFailure as failure:
                if explain is not None:
                    explain(graph, node, failure)
        remove_dead_nodes(graph)
        remove_dead_constants(graph)
        topological_sort(graph)
    return wrapped


def _lower_norms(model: Model, graph: ir.Graph) -> None:
    """Replace RMS_NORM by builtins, which a decomposition may contain."""
    for node in list(graph):
        values = [value for value in (*node.inputs, *node.outputs) if value is not None]
        if node.op_type == "RMS_NORM" and all(_is_static_float32(value) for value in values):
            lower_rms_norm(model, graph, node)
            graph.remove(node, safe=True)


def _wrap_norm(model: Model, graph: ir.Graph, root: ir.Node) -> None:
    norm = match_rms_norm(root)
    y = norm.last.outputs[0]
    inputs = [norm.x, norm.weight]
    _require_static_float32(*inputs, y)
    nodes = nodes_between(inputs, [y])
    outline(model, graph, nodes, inputs, [y], RMS_NORM, {"epsilon": norm.epsilon})


class _AttentionWrapper:
    """Wraps the attentions of one graph. Layers with the same mask share its reshaped form."""

    def __init__(self, model: Model, graph: ir.Graph) -> None:
        self.model, self.graph = model, graph
        self.masks = MaskOperands()
        self.no_masks: dict[int, ir.Value] = {}  # by S

    def wrap(self, softmax: ir.Node) -> None:
        """Rebuild the attention around `softmax` in the composite's layout, and outline it."""
        sdpa = match_sdpa(softmax, by_token)
        factors, layouts = sdpa.factors, by_token(sdpa.factors)
        operands = [sdpa.q.value, sdpa.k.value, sdpa.v.value]
        added = [term.value for term, _ in sdpa.terms if term.kind == "add"]
        _require_static_float32(*operands, sdpa.result.value, *added)
        if sdpa.sinks is not None:
            fail("the composite has no sinks", sdpa.sinks)
        old = sdpa.result.value
        mask = self._mask(softmax, sdpa)
        op = Builder(self.graph, before=sdpa.last, prefix=f"{old.name}/")
        inputs = [
            in_layout(op, factors, labeled, axes, name)
            for labeled, axes, name in (
                (sdpa.q, layouts.q, "q"),
                (sdpa.k, layouts.kv, "k"),
                (sdpa.v, layouts.kv, "v"),
            )
        ]
        inputs.append(mask)
        y = _decomposition(op, sdpa, *inputs)
        result = in_layout(op, factors, LabeledValue(y, layouts.result), sdpa.result.axes, "result")
        result = op.reshape(result, shape_of(old), name="result")
        replace_output(self.model, old, result)
        attributes = {"scale": sdpa.scale} | ({"logit_cap": sdpa.cap} if sdpa.cap is not None else {})
        outline(self.model, self.graph, nodes_between(inputs, [y]), inputs, [y], ATTENTION, attributes)

    def _mask(self, softmax: ir.Node, sdpa: Sdpa) -> ir.Value:
        """The mask [1, 1, T or 1, S]. Raises MatchFailure for one by head."""
        S = sdpa.factors.sizes["S"]
        op = Builder(self.graph, before=softmax)
        mask = self.masks.build(op, sdpa)
        if mask is None:
            if S not in self.no_masks:
                self.no_masks[S] = op.constant(np.zeros((1, 1, 1, S), np.float32), "no_mask")
            return self.no_masks[S]
        shape = shape_of(mask)
        if shape[-1:] != (S,) or any(dim != 1 for dim in shape[:-2]):
            fail("the heads are masked differently", mask)
        return op.reshape(mask, [1, 1, shape[-2] if len(shape) > 1 else 1, S], name="mask")


def _decomposition(
    op: Builder, sdpa: Sdpa, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value
) -> ir.Value:
    """softmax(scale q k' + mask) v in the composite's layouts; the queries of a group are rows."""
    K, G, T, S, H = (sdpa.factors.sizes[name] for name in "KGTSH")
    N = K * G

    def product(x: ir.Value, y: ir.Value, columns: int, name: str, *, adjoint: bool) -> ir.Value:
        shape = [1, K, G * T, columns]
        x = op.reshape(x, [1, K, G * T, shape_of(x)[-1]], name=f"{name}_groups")
        z = op.node("BATCH_MATMUL", [x, y], shape, name=name, adjointLhs=False, adjointRhs=adjoint)
        return op.reshape(z, [1, N, T, columns], name=f"{name}_heads")

    def with_scalar(operator: str, x: ir.Value, scalar: float, name: str) -> ir.Value:
        constant = op.constant(scalar, name, np.float32)
        return op.node(operator, [x, constant], shape_of(x), name=f"{name}_applied")

    q, k, v = (swap_heads(op, x) for x in (q, k, v))  # [1, heads, T or S, H]
    scores = product(with_scalar("MUL", q, sdpa.scale, "scale"), k, S, "scores", adjoint=True)
    if sdpa.cap is not None:
        scores = with_scalar("DIV", scores, sdpa.cap, "cap")
        scores = op.node("TANH", [scores], shape_of(scores), name="bounded")
        scores = with_scalar("MUL", scores, sdpa.cap, "uncap")
    scores = op.node("ADD", [scores, mask], [1, N, T, S], name="masked")
    weights = op.node("SOFTMAX", [scores], [1, N, T, S], name="weights", beta=1.0)
    return swap_heads(op, product(weights, v, H, "mixed", adjoint=False))


def _is_static_float32(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT and not is_quantized(value) and not is_dynamic(value)


def _require_static_float32(*values: ir.Value) -> None:
    for value in values:
        if not _is_static_float32(value):
            fail("it is not float32 of a fixed shape", value)
