"""Activations of com.microsoft, and its product with a factor and transposes."""

from __future__ import annotations

import onnx_ir as ir

from o2o.model import shape_of
from o2o.raising.operation import Operation, Rules


def _biased(of: Operation) -> ir.Value:
    """Operand 0, plus the bias in operand 1 if there is one."""
    return of.emit("ADD", of.operand(0), of.operand(1), name="biased") if of.has(1) else of.operand(0)


def _gelu(of: Operation) -> ir.Value:
    """Gelu, BiasGelu: x / 2 * (1 + erf(x / sqrt(2)))."""
    return of.emit("GELU", _biased(of), approximate=False)


def _fast_gelu(of: Operation) -> ir.Value:
    """FastGelu: with tanh instead of erf."""
    return of.emit("GELU", _biased(of), approximate=True)


def _quick_gelu(of: Operation) -> ir.Value:
    """QuickGelu: x * sigmoid(alpha * x)."""
    x, alpha = of.operand(0), float(of.get("alpha", 1.702))
    inner = x if alpha == 1 else of.emit("MUL", x, of.like(alpha, x, "alpha"), name="scaled")
    return of.emit("MUL", x, of.emit("LOGISTIC", inner, name="gate"), name="gated")


def _fused_matmul(of: Operation) -> ir.Value:
    """FusedMatMul: alpha * a b, with transposed last axes."""
    x, y = of.operand(0), of.operand(1)
    if of.get("transBatchA", 0) or of.get("transBatchB", 0):
        of.refuse("it transposes the batch")
    if min(len(shape_of(x)), len(shape_of(y))) < 2:
        of.refuse("it multiplies vectors")
    left, right = (bool(of.get(name, 0)) for name in ("transA", "transB"))
    product = of.emit("BATCH_MATMUL", x, y, name="product", adjointLhs=left, adjointRhs=right)
    alpha = float(of.get("alpha", 1.0))
    return product if alpha == 1 else of.emit("MUL", product, of.like(alpha, product, "alpha"))


def _bias_split_gelu(of: Operation) -> ir.Value:
    """BiasSplitGelu: the first half of x + bias, times GELU of the second."""
    x = _biased(of)
    shape = list(shape_of(x))
    half = [*shape[:-1], shape[-1] // 2]
    first = of.op.slice(x, [0] * len(shape), half, "first")
    second = of.op.slice(x, [*[0] * (len(shape) - 1), half[-1]], half, "second")
    return of.emit("MUL", first, of.emit("GELU", second, approximate=False), name="gated")


ORT_RULES: Rules = {
    "Gelu": _gelu,
    "BiasGelu": _gelu,
    "FastGelu": _fast_gelu,
    "QuickGelu": _quick_gelu,
    "BiasSplitGelu": _bias_split_gelu,
    "FusedMatMul": _fused_matmul,
}
"""Rules of com.microsoft."""
