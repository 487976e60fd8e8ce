"""RMSNorm in ONNX: RMSNormalization, or ONNX Runtime's SimplifiedLayerNormalization."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from o2o.model import Model, shape_of
from o2o.onnx_fusion.forms import HALF
from o2o.onnx_fusion.rule import OnnxRule, Site, node_after
from o2o.onnx_fusion.twin import Twin
from o2o.rewriting.builder import add_constant
from o2o.rewriting.matchers import MatchFailure, fail, producer_of, single_user
from o2o.rewriting.rms_norm import Normalized, RmsNormRule, with_products


@dataclass(frozen=True)
class _Product:
    """A result of RMSNorm in the ONNX graph, and its weight [D]; None for ones."""

    result: ir.Value
    weight: ir.Value | None


@dataclass(frozen=True)
class _Match:
    x: ir.Value
    products: tuple[_Product, ...]
    epsilon: float
    D: int
    dtype: ir.DataType


class OnnxRmsNormRule(OnnxRule):
    """Fuse RMSNorm over the last axis, whose weight may be computed."""

    def candidates(self, twin: Twin) -> list[ir.Node]:
        """See `OnnxRule`."""
        return list(RmsNormRule().candidates(twin.graph))

    def match(self, twin: Twin, node: ir.Node) -> _Match:
        """See `OnnxRule`."""
        normalized = _in_half_precision(RmsNormRule().match(node))
        dtype = normalized.x.dtype
        if dtype is None or not dtype.is_floating_point():
            fail(f"it computes {dtype}, not floats", normalized.x)
        x = twin.original(normalized.x, "the operand")
        if normalized.products:
            products = tuple(
                _Product(
                    twin.original(product.last.outputs[0], "the result"),
                    twin.original(product.weight, "the weight"),
                )
                for product in normalized.products
            )
        else:
            products = (_Product(twin.original(normalized.value, "the result"), None),)
        operands = [x, *(product.weight for product in products if product.weight is not None)]
        twin.check_between([product.result for product in products], operands)
        D = shape_of(normalized.x)[-1]
        return _Match(x, products, normalized.epsilon, D, dtype)

    def apply(self, model: Model, twin: Twin, match: _Match) -> None:
        """See `OnnxRule`."""
        for product in match.products:
            site = Site(model, twin, node_after([product.result]))
            weight = product.weight
            if weight is None:
                weight = self._ones(twin.source, match.D, match.dtype)
            op_type = "RMSNormalization" if self.form == "standard" else "SimplifiedLayerNormalization"
            (result,) = site.insert(
                op_type, [match.x, weight], [product.result], axis=-1, epsilon=match.epsilon
            )
            site.replace(product.result, result)

    def _ones(self, graph: ir.Graph, size: int, dtype: ir.DataType) -> ir.Value:
        name = f"ones_{size}_{dtype.name.lower()}"
        existing = graph.initializers.get(name)
        return existing if existing is not None else add_constant(graph, np.ones(size, dtype.numpy()), name)


def _in_half_precision(match: Normalized) -> Normalized:
    """The norm of x in half precision that is computed in float32, as RMSNormalization does by itself.

    x is cast to float32, and the normalized tensor is cast back before it is multiplied by the weight.
    """
    widened = producer_of(match.x, "CAST")
    half = widened.inputs[0] if widened is not None else None
    if half is None or half.dtype not in HALF or match.x.dtype != ir.DataType.FLOAT or match.products:
        return match
    try:
        cast = single_user(match.value, "the normalized tensor")
    except MatchFailure:
        return match
    value = cast.outputs[0]
    if cast.op_type != "CAST" or value.dtype != half.dtype:
        return match
    return with_products(half, value, match.epsilon)
