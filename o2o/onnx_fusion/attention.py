"""Attention in ONNX: Attention, or ONNX Runtime's MultiHeadAttention.

Masks stay what the model computes. They become one operand that is added to the scores, so nothing about
their meaning has to be proven. Attention takes concatenated caches as operands too, and returns longer ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from o2o.model import Model, attribute, shape_of
from o2o.onnx_fusion.forms import CONTRIB, FLOATS, Form
from o2o.onnx_fusion.rule import OnnxRule, Site, node_after
from o2o.onnx_fusion.twin import Twin
from o2o.operators.masks import HIDDEN_SCORE
from o2o.rewriting.attention.layouts import LabeledValue
from o2o.rewriting.attention.scores import is_finite
from o2o.rewriting.attention.sdpa import Layouts, Sdpa, match_sdpa
from o2o.rewriting.axes import Factors
from o2o.rewriting.builder import add_constant
from o2o.rewriting.matchers import fail

_HEADS_LAST = (0, 2, 1, 3)
_BOUND = -1e30
"""Beside this number no score counts in float32, as beside the lowest one."""


def heads_first(factors: Factors) -> Layouts:
    """Return the layouts of ONNX's Attention: q and result [B, N, T, H], k and v [B, K, S, H].

    Args:
        factors: The sizes.

    Returns:
        The layouts.
    """
    q = factors.axes("B", "KG", "T", "H")
    return Layouts(q, factors.axes("B", "K", "S", "H"), q)


@dataclass(frozen=True)
class _Term:
    """A mask or bias of the ONNX graph: see `o2o.rewriting.attention.scores.Term`.

    Attributes:
        kind: `add`, `hide` or `show`.
        value: The bias or condition.
        factor: The factor of a bias.
        rank: The number of its axes.
        has_rows: Whether it differs from token to token.
        is_finite: Whether it is proven to have no infinite entry.
    """

    kind: str
    value: ir.Value
    factor: float
    rank: int
    has_rows: bool
    is_finite: bool


@dataclass(frozen=True)
class _Caches:
    """Concatenated caches: the past and the new rows of keys and values, and the results."""

    past: tuple[ir.Value, ir.Value]
    new: tuple[ir.Value, ir.Value]
    present: tuple[ir.Value, ir.Value]


@dataclass(frozen=True)
class _Operand:
    """A tensor of the ONNX graph, and the order of its axes: BNTH, BTNH, or BTD with D = N * H."""

    value: ir.Value
    order: str
    heads: int
    width: int

    def heads_first(self, site: Site) -> ir.Value:
        """The tensor as [B, N, T, H]."""
        value = self.value
        if self.order == "BTD":
            value = site.compute("Reshape", [value, site.ints([0, 0, self.heads, self.width])], "heads")
        if self.order != "BNTH":
            value = site.compute("Transpose", [value], "by_head", perm=_HEADS_LAST)
        return value

    def flat(self, site: Site) -> ir.Value:
        """The tensor as [B, T, N * H]."""
        value = site.twin.current(self.value)
        if self.order == "BTD":
            return value
        if self.order == "BNTH":
            node = value.producer()
            if node is not None and node.op_type == "Transpose" and attribute(node, "perm") == _HEADS_LAST:
                source = node.inputs[0]
                assert source is not None
                value = source
            else:
                value = site.compute("Transpose", [value], "by_token", perm=_HEADS_LAST)
        return site.compute("Reshape", [value, site.ints([0, 0, self.heads * self.width])], "flat")


@dataclass(frozen=True)
class _Match:
    result: ir.Value
    q: _Operand
    k: _Operand
    v: _Operand
    terms: tuple[_Term, ...]
    scale: float
    cap: float
    dtype: ir.DataType
    sizes: dict[str, int]
    zeroes_nan: bool
    precision: ir.DataType | None
    caches: _Caches | None


class OnnxAttentionRule(OnnxRule):
    """Fuse scale q k' + masks, softmax and the product with v."""

    def __init__(self, form: Form) -> None:
        """See `OnnxRule`."""
        super().__init__(form)
        self._masks: dict[object, ir.Value] = {}

    def candidates(self, twin: Twin) -> list[ir.Node]:
        """See `OnnxRule`."""
        return [node for node in twin.graph if node.op_type == "SOFTMAX"]

    def match(self, twin: Twin, node: ir.Node) -> _Match:
        """See `OnnxRule`."""
        sdpa = match_sdpa(node, heads_first, twin.batch)
        layouts, sizes = heads_first(sdpa.factors), dict(sdpa.factors.sizes)
        if sdpa.sinks is not None:
            fail("the operator has no sinks", sdpa.sinks)
        if sdpa.cap is not None and self.form == "ort":
            fail("MultiHeadAttention has no soft-cap", sdpa.result.value)
        q, k, v = (
            _operand(twin, sdpa.factors, sources, heads, tokens, what)
            for sources, heads, tokens, what in zip(
                sdpa.sources, ("KG", "K", "K"), ("T", "S", "S"), ("q", "k", "v"), strict=True
            )
        )
        if sdpa.result.axes != layouts.result or len(shape_of(sdpa.result.value)) != 4:
            fail("the result is no tensor of texts, heads, tokens and elements", sdpa.result.value)
        dtype = sdpa.q.value.dtype
        if dtype not in FLOATS or any(value.dtype != dtype for value in (sdpa.k.value, sdpa.v.value)):
            fail(f"q is {dtype}; q, k and v should be of one floating-point type", sdpa.q.value)
        terms = tuple(self._terms(twin, sdpa, dtype))
        result = twin.original(sdpa.result.value, "the result")
        operands = [q.value, k.value, v.value, *(term.value for term in terms)]
        twin.check_between([result], operands)
        caches = None
        if self.form == "standard":
            caches = _concatenated(twin, k, v, [q.value, *(term.value for term in terms)])
        scale, cap = sdpa.scale, sdpa.cap or 0.0
        more = sdpa.zeroes_nan, sdpa.precision, caches
        return _Match(result, q, k, v, terms, scale, cap, dtype, sizes, *more)

    def _terms(self, twin: Twin, sdpa: Sdpa, dtype: ir.DataType) -> list[_Term]:
        terms = []
        wanted = sdpa.factors.axes("B", "KG", "T", "S")
        for term, axes in sdpa.terms:
            if axes != wanted:
                fail("the scores are not a tensor of texts, heads, tokens and keys at the mask", term.value)
            if term.kind == "add" and term.value.dtype != dtype:
                fail(f"the mask is {term.value.dtype}, not {dtype}", term.value)
            shape = shape_of(term.value)
            has_rows = len(shape) > 1 and (shape[-2] != 1 or sdpa.factors.sizes["T"] == 1)
            original = twin.original(term.value, "the mask")
            terms.append(_Term(term.kind, original, term.factor, len(shape), has_rows, is_finite(term.value)))
        return terms

    def apply(self, model: Model, twin: Twin, match: _Match) -> None:
        """See `OnnxRule`."""
        site = Site(model, twin, node_after([match.result]))
        mask = self._mask(site, match)
        if self.form == "standard":
            _insert_attention(site, match, mask)
        else:
            _insert_multi_head_attention(site, match, mask)

    # ---- masks ---------------------------------------------------------------------------------------

    def _mask(self, site: Site, match: _Match) -> ir.Value | None:
        """One mask for all terms, added to the scores. Layers with the same terms share it."""
        if not match.terms:
            return None
        rank = 4 if self.form == "ort" else 2
        total: ir.Value | None = None
        key: tuple[object, ...] = ()
        for term in match.terms:
            value = self._additive(site, term, match.dtype)
            key = (*key, value)
            if len(key) == 1:
                total = value
            else:
                if key not in self._masks:
                    assert total is not None
                    self._masks[key] = site.compute("Add", [total, value], "masks")
                total = self._masks[key]
        assert total is not None
        has_rows = any(term.has_rows for term in match.terms)
        if not has_rows or max(term.rank for term in match.terms) < rank:
            if (total, "rows") not in self._masks:
                axis = match.q.order.index("T")
                tokens = site.dims(match.q.value, axis, axis + 1)
                ones = [site.ints([1] * (rank - 2))] if rank > 2 else []
                shape = site.concat([*ones, *([site.ints([1])] if has_rows else [tokens]), site.ints([1])])
                self._masks[total, "rows"] = site.compute("Expand", [total, shape], "rows")
            total = self._masks[total, "rows"]
        return total

    def _additive(self, site: Site, term: _Term, dtype: ir.DataType) -> ir.Value:
        if term.kind == "add" and term.factor == 1:
            return self._above_lowest(site, term, dtype)
        key = term.kind, term.value, term.factor
        if key not in self._masks:
            numbers = {"add": (term.factor,), "hide": (_hidden(dtype), 0.0), "show": (0.0, _hidden(dtype))}
            operands = [_scalar(site.graph, number, dtype) for number in numbers[term.kind]]
            op_type = "Mul" if term.kind == "add" else "Where"
            self._masks[key] = site.compute(op_type, [term.value, *operands], "mask", dtype)
        return self._masks[key]

    def _above_lowest(self, site: Site, term: _Term, dtype: ir.DataType) -> ir.Value:
        """A bias without the lowest number of its type.

        ONNX Runtime's Attention returns zeros for a query whose entries all are the lowest number. It is
        finite: the model itself returns the mean of the values then.
        """
        if self.form != "standard" or not term.is_finite or dtype != ir.DataType.FLOAT:
            return term.value
        key = "bounded", term.value
        if key not in self._masks:
            bound = _scalar(site.graph, _BOUND, dtype)
            self._masks[key] = site.compute("Max", [term.value, bound], "bounded")
        return self._masks[key]


def _operand(
    twin: Twin, factors: Factors, sources: Sequence[LabeledValue], heads: str, tokens: str, what: str
) -> _Operand:
    """An operand of the attention: the nearest tensor with its heads first, else another one of the graph."""
    orders = {
        "BNTH": factors.axes("B", heads, tokens, "H"),
        "BTNH": factors.axes("B", tokens, heads, "H"),
        "BTD": factors.axes("B", tokens, f"{heads}H"),
    }
    count = math.prod(factors.sizes[name] for name in heads)
    for order, axes in orders.items():
        for source in sources:
            if source.axes == axes and len(shape_of(source.value)) == len(order) and twin.has(source.value):
                return _Operand(twin.original(source.value, what), order, count, factors.sizes["H"])
    fail(f"{what} is no tensor of texts, heads, tokens and elements", sources[0].value)


def _hidden(dtype: ir.DataType) -> float:
    return HIDDEN_SCORE if dtype != ir.DataType.FLOAT16 else float(np.finfo(np.float16).min)


def _scalar(graph: ir.Graph, number: float, dtype: ir.DataType) -> ir.Value:
    name = f"o2o/{dtype.name.lower()}_{number:g}"
    existing = graph.initializers.get(name)
    return existing if existing is not None else add_constant(graph, np.asarray(number, dtype.numpy()), name)


# ---- ONNX's Attention --------------------------------------------------------------------------------


def _concatenated(twin: Twin, k: _Operand, v: _Operand, others: list[ir.Value]) -> _Caches | None:
    """The caches, if k and v are concatenations that Attention may compute itself."""
    parts = []
    for operand in (k, v):
        value, node = operand.value, operand.value.producer()
        if operand.order != "BNTH":
            return None
        if node is None or node.op_type != "Concat" or node.domain != "" or len(node.inputs) != 2:
            return None
        if attribute(node, "axis", 0) not in (2, -2) or value.graph is not twin.source:
            return None
        past, new = node.inputs
        if past is None or new is None:
            return None
        parts.append((past, new))
    (past_k, new_k), (past_v, new_v) = parts
    if k.value is v.value or twin.shape(new_k) != twin.shape(new_v):
        return None
    if {k.value, v.value} & _ancestors([*others, past_k, new_k, past_v, new_v]):
        return None  # a mask asks for the length of the concatenated cache
    return _Caches((past_k, past_v), (new_k, new_v), (k.value, v.value))


def _ancestors(values: list[ir.Value]) -> set[ir.Value]:
    seen: set[ir.Value] = set()
    pending = list(values)
    while pending:
        value = pending.pop()
        if value not in seen:
            seen.add(value)
            node = value.producer()
            if node is not None:
                pending += [operand for operand in node.inputs if operand is not None]
    return seen


def _insert_attention(site: Site, match: _Match, mask: ir.Value | None) -> None:
    options: dict[str, Any] = {"scale": float(match.scale)}
    if match.cap:
        options["softcap"] = float(match.cap)
    if match.precision is not None:
        options["softmax_precision"] = int(match.precision)
    if match.caches is None:
        operands = [operand.heads_first(site) for operand in (match.q, match.k, match.v)]
        (result,) = site.insert("Attention", [*operands, mask], [match.result], **options)
    else:
        caches = match.caches
        result, *present = site.insert(
            "Attention",
            [match.q.heads_first(site), *caches.new, mask, *caches.past],
            [match.result, *caches.present],
            **options,
        )
        for old, new in zip(caches.present, present, strict=True):
            site.replace(old, new)
    site.replace(match.result, result)


# ---- ONNX Runtime's MultiHeadAttention ---------------------------------------------------------------


def _insert_multi_head_attention(site: Site, match: _Match, mask: ir.Value | None) -> None:
    sizes = match.sizes
    N, H = sizes["K"] * sizes["G"], sizes["H"]
    q = match.q.flat(site)
    k, v = (_repeated(site, operand.heads_first(site), sizes) for operand in (match.k, match.v))
    flat = site.compute(
        "MultiHeadAttention",
        [q, k, v, None, None, mask],
        "attention",
        domain=CONTRIB,
        num_heads=N,
        scale=float(match.scale),
    )
    if match.zeroes_nan and not all(term.is_finite or term.kind != "add" for term in match.terms):
        is_nan = site.compute("IsNaN", [flat], "is_nan", ir.DataType.BOOL)  # of a query that sees no key
        zero = _scalar(site.graph, 0.0, match.dtype)
        flat = site.compute("Where", [is_nan, zero, flat], "attention", match.dtype)
    by_token = site.compute("Reshape", [flat, site.ints([0, 0, N, H])], "heads")
    users = {use.node for use in match.result.uses()}
    user = users.pop() if len(users) == 1 and not match.result.is_graph_output() else None
    if user is not None and user.op_type == "Transpose" and attribute(user, "perm") == _HEADS_LAST:
        site.replace(user.outputs[0], by_token)
        return
    (result,) = site.insert("Transpose", [by_token], [match.result], perm=_HEADS_LAST)
    site.replace(match.result, result)


def _repeated(site: Site, value: ir.Value, sizes: dict[str, int]) -> ir.Value:
    """Keys or values [B, N, S, H] for each query head, given [B, K, S, H]."""
    K, G, H = sizes["K"], sizes["G"], sizes["H"]
    if G == 1:
        return value
    apart = site.compute("Unsqueeze", [value, site.ints([2])], "apart")
    wide = site.compute("Expand", [apart, site.ints([1, 1, G, 1, 1])], "wide")
    return site.compute("Reshape", [wide, site.ints([0, K * G, -1, H])], "repeated")
