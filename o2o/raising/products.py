"""Matrix products. One with a constant matrix is FULLY_CONNECTED."""

from __future__ import annotations

import math

import onnx_ir as ir

from o2o.formats.tensors import is_plain
from o2o.formats.transposed_tensor import TransposedTensor
from o2o.model import shape_of
from o2o.raising.operation import Operation, Rules
from o2o.raising.quantized import quantized_product
from o2o.rewriting.builder import add_tensor


def _matmul(of: Operation) -> ir.Value:
    x, y = of.operand(0), of.operand(1)
    if len(shape_of(y)) == 2 and is_plain(y) and len(shape_of(x)) > 0:
        return fully_connected(of, x, transposed_weights(of, y))
    if len(shape_of(x)) > 0 and (product := quantized_product(of, x, y)) is not None:
        return product
    return matmul(of, x, y)


def matmul(of: Operation, x: ir.Value, y: ir.Value) -> ir.Value:
    """Multiply two tensors as numpy.matmul does.

    Args:
        of: The operation.
        x: [..., M, D], or [D].
        y: [..., D, R], or [D].

    Returns:
        [..., M, R] without the axes of vectors.
    """
    left, right = shape_of(x), shape_of(y)
    x = of.reshape(x, [1, *left]) if len(left) == 1 else x
    y = of.reshape(y, [*right, 1]) if len(right) == 1 else y
    product = of.emit("BATCH_MATMUL", x, y)
    if len(left) > 1 and len(right) > 1:
        return product
    shape = list(shape_of(product))
    if len(right) == 1:
        shape.pop()
    if len(left) == 1:
        shape.pop(-1 if len(right) == 1 else -2)
    return of.reshape(product, shape)


def transposed_weights(of: Operation, matrix: ir.Value) -> ir.Value:
    """Return the weights of FULLY_CONNECTED for a product with a constant matrix.

    Args:
        of: The operation.
        matrix: [D, R]. Its data is transposed while it is written; one that is a transpose is used as it was.

    Returns:
        The constant [R, D].
    """
    tensor = matrix.const_value
    assert tensor is not None
    weights = of.op.graph.meta.setdefault("transposed", {})
    if matrix not in weights:
        if isinstance(tensor, TransposedTensor) and tensor.axes == (1, 0):
            (original,) = tensor.parts
            known = next(
                (value for value in of.op.graph.initializers.values() if value.const_value is original), None
            )
            weights[matrix] = known
        if weights.get(matrix) is None:
            weights[matrix] = add_tensor(
                of.op.graph, TransposedTensor("", tensor), f"{matrix.name}_transposed"
            )
    value = weights[matrix]
    assert isinstance(value, ir.Value)
    return value


def fully_connected(of: Operation, x: ir.Value, weights: ir.Value, bias: ir.Value | None = None) -> ir.Value:
    """Multiply by a constant matrix.

    Args:
        of: The operation.
        x: [..., D].
        weights: [R, D].
        bias: [R], or None.

    Returns:
        [..., R].
    """
    shape = shape_of(x)
    x = of.reshape(x, [1, *shape]) if len(shape) == 1 else x
    y = of.emit("FULLY_CONNECTED", x, weights, bias, keepNumDims=True)
    return of.reshape(y, [*shape[:-1], shape_of(weights)[0]])


def _gemm(of: Operation) -> ir.Value:
    x, y = of.operand(0), of.operand(1)
    alpha, beta = float(of.get("alpha", 1.0)), float(of.get("beta", 1.0))
    x = of.transpose(x, [1, 0]) if of.get("transA", 0) else x
    bias = of.operand(2) if of.has(2) and beta != 0 else None
    if is_plain(y):
        weights = y if of.get("transB", 0) else transposed_weights(of, y)
        is_row = (
            bias is not None
            and is_plain(bias)
            and shape_of(bias) in ((shape_of(weights)[0],), (1, shape_of(weights)[0]))
        )
        fused = bias if is_row and alpha == beta == 1 else None
        if fused is not None:
            assert bias is not None
            return fully_connected(of, x, weights, of.reshape(bias, [shape_of(weights)[0]]))
        result = fully_connected(of, x, weights)
    else:
        is_transposed = bool(of.get("transB", 0))
        product = quantized_product(of, x, y, is_transposed=is_transposed)
        result = of.emit("BATCH_MATMUL", x, y, adjointRhs=is_transposed) if product is None else product
    if alpha != 1:
        result = of.emit("MUL", result, of.like(alpha, result))
    if bias is not None:
        bias = of.emit("MUL", bias, of.like(beta, bias)) if beta != 1 else bias
        result = of.emit("ADD", result, bias)
    return result


# ---- Einsum ------------------------------------------------------------------------------------------


def _einsum(of: Operation) -> ir.Value:
    text = of.get("equation")
    text = (text.decode() if isinstance(text, bytes) else text).replace(" ", "")
    if "." in text:
        of.refuse(f"its equation {text} has an ellipsis")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    counts = "".join(terms)
    result = right if arrow else "".join(sorted(c for c in set(counts) if counts.count(c) == 1))
    if len(terms) > 2 or any(len(set(term)) != len(term) for term in terms):
        of.refuse(f"its equation {text} has more than two operands, or a diagonal")
    values = [of.operand(index) for index in range(len(terms))]
    if len(terms) == 1:
        y, axes = _without(of, values[0], terms[0], result)
        return of.transpose(y, [axes.index(name) for name in result])
    x, x_axes = _without(of, values[0], terms[0], result + terms[1])
    y, y_axes = _without(of, values[1], terms[1], result + terms[0])
    sizes = dict(zip(x_axes + y_axes, shape_of(x) + shape_of(y), strict=True))
    batch = [name for name in result if name in x_axes and name in y_axes]
    summed = [name for name in x_axes if name in y_axes and name not in result]
    rows = [name for name in x_axes if name not in y_axes]
    columns = [name for name in y_axes if name not in x_axes]

    def matrix(value: ir.Value, axes: str, *groups: list[str]) -> ir.Value:
        order = [name for group in (batch, *groups) for name in group]
        value = of.transpose(value, [axes.index(name) for name in order])
        flat = [math.prod(sizes[name] for name in group) for group in groups]
        return of.reshape(value, [*(sizes[name] for name in batch), *flat])

    product = of.emit("BATCH_MATMUL", matrix(x, x_axes, rows, summed), matrix(y, y_axes, summed, columns))
    order = [*batch, *rows, *columns]
    product = of.reshape(product, [sizes[name] for name in order])
    return of.transpose(product, [order.index(name) for name in result])


def _without(of: Operation, x: ir.Value, axes: str, needed: str) -> tuple[ir.Value, str]:
    """x, summed over the axes that nothing else has, and the axes that are left."""
    over = [place for place, name in enumerate(axes) if name not in needed]
    if not over:
        return x, axes
    total = of.emit("SUM", x, of.indices(over, "axes"), keepDims=False)
    return total, "".join(name for name in axes if name in needed)


_ACTIVATIONS = {"Relu": "RELU", "Tanh": "TANH", "Sigmoid": "LOGISTIC"}


def _fused_gemm(of: Operation) -> ir.Value:
    """FusedGemm of com.microsoft: an activation behind Gemm."""
    name = of.get("activation", "")
    if name not in _ACTIVATIONS:
        of.refuse(f"it has the activation {name}")
    return of.emit(_ACTIVATIONS[name], _gemm(of), name="activated")


RULES: Rules = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
}
"""Rules of ONNX's own domain."""

ORT_RULES: Rules = {"FusedGemm": _fused_gemm}
"""Rules of com.microsoft."""
