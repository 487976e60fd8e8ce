"""Matrix products."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from o2o.formats.transposed_tensor import TransposedTensor
from tests.o2o.raising.evaluation import assert_same, operators, parsed


def with_weight(proto: onnx.ModelProto, name: str, shape: tuple[int, ...]) -> onnx.ModelProto:
    weight = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    return proto


@pytest.mark.parametrize("shapes", ["[2,3] [3,4]", "[3] [3,4]", "[2,3] [3]", "[3] [3]", "[5,1,2,3] [4,3,6]"])
def test_matmul(shapes: str) -> None:
    x, z = shapes.split()
    proto = parsed(f"float{x} x, float{z} z", "float y", "y = MatMul (x, z)")
    assert_same(proto)


def test_a_constant_matrix_makes_it_fully_connected() -> None:
    proto = with_weight(parsed("float[2,5,3] x", "float[2,5,4] y", "y = MatMul (x, w)"), "w", (3, 4))
    model = assert_same(proto)
    assert operators(model) == ["FULLY_CONNECTED"]
    weights = model.graphs[0].node(0).inputs[1].const_value
    assert isinstance(weights, TransposedTensor)  # transposed while it is written


def test_a_transposed_weight_is_used_as_it_is() -> None:
    """A tied embedding: Gather and a product with the transpose share one constant."""
    nodes = "e = Gather (w, i) t = Transpose <perm = [1, 0]> (w) y = MatMul (e, t)"
    proto = with_weight(parsed("int64[1,5] i", "float[1,5,2000] y", nodes), "w", (2000, 3))
    model = assert_same(proto)
    assert operators(model) == ["GATHER", "FULLY_CONNECTED"]
    gather, product = model.graphs[0]
    assert gather.inputs[0] is product.inputs[1]


@pytest.mark.parametrize("attributes", ["", "<transB = 1>", "<transA = 1, alpha = 0.5, beta = 2.0>"])
@pytest.mark.parametrize("is_constant", [True, False])
def test_gemm(attributes: str, is_constant: bool) -> None:
    shape = (4, 3) if "transB" in attributes else (3, 4)
    x = "[3,2]" if "transA" in attributes else "[2,3]"
    inputs = f"float{x} x" + ("" if is_constant else f", float{list(shape)} w")
    constants = "float[4] b = {1, 2, 3, 4}"
    proto = parsed(inputs, "float[2,4] y", f"y = Gemm {attributes} (x, w, b)", constants=constants)
    model = assert_same(with_weight(proto, "w", shape) if is_constant else proto)
    if is_constant and "alpha" not in attributes:
        assert operators(model) == ["FULLY_CONNECTED"]


@pytest.mark.parametrize(
    "equation", ["bhqd,bhkd->bhqk", "ij,jk", "bij,bjk->ikb", "ij->ji", "ij->", "i,j->ij", "bnd,dh->bnh"]
)
def test_einsum(equation: str) -> None:
    sizes = {"b": 2, "h": 3, "q": 4, "k": 5, "d": 6, "i": 2, "j": 3, "n": 4}
    terms = equation.partition("->")[0].split(",")
    names = [f"x{index}" for index in range(len(terms))]
    inputs = ", ".join(
        f"float{[sizes[c] for c in term]} {name}" for term, name in zip(terms, names, strict=True)
    )
    assert_same(parsed(inputs, "float y", f'y = Einsum <equation = "{equation}"> ({", ".join(names)})'))
