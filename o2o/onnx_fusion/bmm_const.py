"""MatMul with a constant matrix on its left, or behind layout operators, as MatMul by a matrix [K, N].

Quantization and engines know a matrix on the right as the weights of a linear layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from o2o.formats.transposed_tensor import TransposedTensor
from o2o.model import Model, shape_of
from o2o.onnx_fusion.rule import OnnxRule, Site, node_after
from o2o.onnx_fusion.twin import Twin
from o2o.rewriting.bmm_const import BmmConstRule, Product
from o2o.rewriting.builder import add_tensor


@dataclass(frozen=True)
class _Match:
    """A product of the ONNX graph: see `o2o.rewriting.bmm_const.Product`."""

    product: Product
    x: ir.Value
    result: ir.Value
    ranks: tuple[int, int]


class OnnxBmmConstRule(OnnxRule):
    """Replace A x by (x' A')', A constant, and x A by x A with the one matrix that A holds."""

    opset: ClassVar[int] = 0

    def candidates(self, twin: Twin) -> list[ir.Node]:
        """See `OnnxRule`."""
        return BmmConstRule().candidates(twin.graph)

    def match(self, twin: Twin, node: ir.Node) -> _Match:
        """See `OnnxRule`."""
        product = BmmConstRule().match(node)
        x, result = twin.original(product.x, "the operand"), twin.original(product.result, "the result")
        twin.check_between([result], [x, twin.original(product.constant, "the constant")])
        return _Match(product, x, result, (len(shape_of(product.x)), len(shape_of(product.result))))

    def apply(self, model: Model, twin: Twin, match: _Match) -> None:
        """See `OnnxRule`."""
        site, product = Site(model, twin, node_after([match.result])), match.product
        x = match.x
        if product.swaps_x:
            x = site.compute("Transpose", [x], "swapped", perm=_swap(match.ranks[0]))
        name = f"{product.constant.name}_right"
        matrix = add_tensor(twin.source, _transposed(product.weights), name)
        if not product.swaps_result:
            (result,) = site.insert("MatMul", [x, matrix], [match.result])
        else:
            swapped = site.compute("MatMul", [x, matrix], "product")
            (result,) = site.insert("Transpose", [swapped], [match.result], perm=_swap(match.ranks[1]))
        site.replace(match.result, result)


def _swap(rank: int) -> list[int]:
    return [*range(rank - 2), rank - 1, rank - 2]


def _transposed(weights: ir.TensorProtocol) -> ir.TensorProtocol:
    """[K, N], over the stored bytes where `weights` [N, K] are their transpose."""
    if isinstance(weights, TransposedTensor) and weights.axes == (1, 0) and len(weights.parts[0].shape) == 2:
        return weights.parts[0]
    return TransposedTensor("", weights)
