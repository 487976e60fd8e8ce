"""Quantized constants stay in integers, and compute what ONNX Runtime computes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from o2o.formats.tensors import is_quantized
from o2o.operators.reference import run_nodes
from o2o.quantization.compare import dequantized
from o2o.raising import raise_graph
from tests.o2o.raising.evaluation import parsed
from tests.o2o.raising.onnx_runtime import model_of, operators

D, R = 32, 6
X = np.random.default_rng(0).standard_normal((2, D)).astype(np.float32)


def session_of(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A session that multiplies floats: by default one with 4 bits rounds activations, too."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])


def compare(proto: onnx.ModelProto, x: np.ndarray = X) -> ir.Graph:
    """Compare a model of one input x with ONNX Runtime. Returns the raised graph."""
    (expected,) = session_of(proto).run(None, {"x": x})
    result = raise_graph(ir.serde.deserialize_model(proto).graph)
    assert not result.unsupported
    graph = result.graph
    known = {v: dequantized(v) for v in graph.initializers.values() if is_quantized(v)}
    actual = dict(run_nodes(graph, {graph.inputs[0]: x, **known}))[graph.outputs[0]]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    return graph


def with_weights(nodes: str, weights: dict[str, np.ndarray], opset: int = 21) -> onnx.ModelProto:
    proto = parsed(f"float[2,{D}] x", f"float[2,{R}] y", nodes, opset)
    for name, array in weights.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        assert proto.graph.initializer[-1].data_type == kind
    return proto


def integers(dtype: str, *shape: int) -> np.ndarray:
    kind = onnx.helper.tensor_dtype_to_np_dtype(getattr(onnx.TensorProto, dtype.upper()))
    low, high = {"int8": (-128, 128), "uint8": (0, 256), "int4": (-8, 8), "uint4": (0, 16)}[dtype]
    return np.random.default_rng(1).integers(low, high, shape).astype(kind)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int4", "uint4"])
@pytest.mark.parametrize("form", ["per tensor", "per column", "transposed", "Gemm"])
def test_weights_stay_in_integers(dtype: str, form: str) -> None:
    count = 1 if form == "per tensor" else R
    is_transposed = form in ("transposed", "Gemm")
    axis = 0 if is_transposed else 1
    scale = np.linspace(0.01, 0.1, count, dtype=np.float32)
    weights = {
        "w": integers(dtype, *((R, D) if is_transposed else (D, R))),
        "scale": scale if count > 1 else scale.reshape(()),
        "zero": integers(dtype, count) if count > 1 else integers(dtype, 1).reshape(()),
    }
    product = {
        "transposed": "t = Transpose <perm=[1,0]> (f) y = MatMul (x, t)",
        "Gemm": "y = Gemm <transB=1> (x, f)",
    }.get(form, "y = MatMul (x, f)")
    graph = compare(with_weights(f"f = DequantizeLinear <axis={axis}> (w, scale, zero) {product}", weights))
    products = [node for node in graph if node.op_type == "FULLY_CONNECTED"]
    assert len(products) == 1
    source = products[0].inputs[1].producer().inputs[0]  # type: ignore[union-attr]
    assert source is not None
    assert source.dtype == (ir.DataType.INT4 if "4" in dtype else ir.DataType.INT8)
    assert is_quantized(source)


@pytest.mark.parametrize("dtype", ["int8", "uint4"])
def test_blocks_of_columns(dtype: str) -> None:
    weights = {
        "w": integers(dtype, D, R),
        "scale": np.linspace(0.01, 0.1, 2 * R, dtype=np.float32).reshape(2, R),
        "zero": integers(dtype, 2, R),
    }
    text = "f = DequantizeLinear <axis=0, block_size=16> (w, scale, zero) y = MatMul (x, f)"
    graph = compare(with_weights(text, weights))
    blocks = [v for v in graph.initializers.values() if is_quantized(v)]
    assert [v.meta["fields"]["quantization"].details.blockSize for v in blocks] == [16]


def test_blocks_elsewhere_become_arithmetic() -> None:
    weights = {
        "w": integers("int4", 2, D),
        "scale": np.linspace(0.01, 0.1, 4, dtype=np.float32).reshape(2, 2),
        "other": np.ones((D, R), np.float32),
    }
    text = "f = DequantizeLinear <axis=1, block_size=16> (w, scale) s = Add (x, f) y = MatMul (s, other)"
    assert "DEQUANTIZE" not in operators(compare(with_weights(text, weights)))


def test_rounded_activations() -> None:
    text = """q = QuantizeLinear (x, scale, zero) f = DequantizeLinear (q, scale, zero)
              y = MatMul (f, w)"""
    weights = {
        "scale": np.float32(0.02).reshape(()),
        "zero": np.asarray(120, np.uint8),
        "w": np.random.default_rng(2).standard_normal((D, R)).astype(np.float32),
    }
    compare(with_weights(text, weights))


@pytest.mark.parametrize("columns", [D, 384])
def test_products_of_integers_are_exact(columns: int) -> None:
    x = np.random.default_rng(0).standard_normal((1, 2, columns)).astype(np.float32)
    proto = parsed(
        f"float[1,2,{columns}] x",
        f"float[1,2,{R}] y",
        """q, scale, zero = DynamicQuantizeLinear (x) p = MatMulInteger (q, w, zero, of_w)
           f = Cast <to=1> (p) y = Mul (f, scale)""",
    )
    for name, array in (("w", integers("int8", columns, R)), ("of_w", integers("int8", R))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    graph = compare(proto, x)
    assert any(v.dtype == ir.DataType.INT8 and is_quantized(v) for v in graph.initializers.values())


def test_dynamic_quantize_matmul() -> None:
    w, scale, bias = integers("int8", D, R), np.float32([0.03]), np.arange(R, dtype=np.float32)
    model = model_of("DynamicQuantizeMatMul", [X, w, scale, None, bias], 1, [1, 2, 4])
    model.graph.input[0].name = model.graph.node[0].input[0] = "x"
    compare(model)
