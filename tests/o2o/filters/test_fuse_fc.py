"""fuse.fc: several matrices of one input are one, and every result is the same."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from o2o import formats
from o2o.filters.fuse_fc import FuseFc
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.lower.litert import lower_to_litert
from o2o.model import Model, shape_of
from o2o.quantization.compare import compare, dequantized
from o2o.quantization.quantize import quantize
from o2o.quantization.recipes import RECIPES, find_recipe
from o2o.rewriting.stacked_weights import is_stacked, stacked_part_of, unstack
from tests.o2o.filters.conftest import Command
from tests.o2o.fused_graphs import Form, attention
from tests.o2o.graphs import Graph, operators, run, sign, weights
from tests.o2o.quantization.models import constants

ROWS = {"q": 96, "k": 32, "v": 64}
D = 128


def projections(*names: Sequence[str], bias: str = "", activation: str = "") -> Model:
    """For each of `names` a graph that multiplies its x with those matrices, which all graphs have in common.

    bias, activation: the one that has such a thing."""
    model = Model("tflite", [])
    tables = {name: weights(rows, D, seed=seed) for seed, (name, rows) in enumerate(ROWS.items())}
    for number, group in enumerate(names):
        graph = Graph(f"g{number}")
        x = graph.input("x", [1, 3, D])
        for name in group:
            zeros = graph.constant("b", np.zeros(ROWS[name], np.float32)) if name == bias else None
            y = graph.fc(x, graph.constant(f"{name}.weight", tables[name]), f"{name}_out", zeros)
            if name == activation:
                y.producer().attributes.add(ir.AttrInt64("fusedActivationFunction", 1))
            graph.output(graph.op("NEG", [y], shape_of(y), name=name))
        model.graphs.append(graph.ir)
        sign(model, graph.ir)
    return model


def fed(model: Model, number: int) -> dict[str, np.ndarray]:
    return run(model, {"x": weights(1, 3, D, seed=9)}, model.graphs[number])


def assert_same(before: Model, after: Model) -> None:
    for number in range(len(before.graphs)):
        expected, actual = fed(before, number), fed(after, number)
        assert actual.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(actual[name], array)


@pytest.mark.parametrize("recipe", ["none", *(r for r in RECIPES if r.startswith("dynamic"))])
def test_one_product_for_all(command: Command, recipe: str) -> None:
    before = projections("qkv", "qkv")
    quantize(before, find_recipe(recipe))
    before = formats.loads(formats.dumps(before))
    after = command(before)
    assert command.said == "fuse.fc.py: fused 6 FULLY_CONNECTED into 2\n"
    assert operators(after) == {"FULLY_CONNECTED": 2, "SLICE": 6, "NEG": 6}
    assert_same(before, after)
    assert len(formats.dumps(after)) < len(formats.dumps(before)) + 3000, "no matrix is there twice"
    shapes = {f"{name}.weight": (rows, D) for name, rows in ROWS.items()}
    (joined,) = {name: v for name, v in constants(after).items() if is_stacked(v, shapes)}.values()
    actual = unstack(joined, shapes)
    assert list(actual) == list(shapes)
    for name, value in actual.items():
        np.testing.assert_array_equal(dequantized(value), dequantized(constants(before)[name]))
    parts = {stacked_part_of(node, shapes) for node in after.graphs[0] if node.op_type == "SLICE"}
    assert {name for _, name in parts} == shapes.keys()
    assert unstack(joined, {"q.weight": (96, D)}) == {joined.name: joined}
    assert compare(before, after) == compare(after, before) == []


def test_a_graph_that_needs_less_shares_the_matrix(command: Command) -> None:
    before = projections("kv", "qkv", "v")
    after = command(before)
    assert command.said == "fuse.fc.py: fused 6 FULLY_CONNECTED into 3\n"
    assert_same(before, after)
    shapes = {f"{name}.weight": (rows, D) for name, rows in ROWS.items()}
    stacked = [[v for v in g.initializers.values() if is_stacked(v, shapes)] for g in after.graphs]
    assert [len(values) for values in stacked] == [1, 1, 1]
    assert len(formats.dumps(after)) < len(formats.dumps(before)) + 3000


def test_quantized_files_are_compared_by_their_parts(command: Command) -> None:
    plain, quantized = projections("qkv"), projections("qkv")
    quantize(quantized, find_recipe("dynamic_int8"))
    apart = compare(plain, quantized)
    together = compare(plain, command(quantized))
    assert [one.name for one in together] == [one.name for one in apart] == [f"{n}.weight" for n in "qkv"]
    assert [one.error.rms for one in together] == [one.error.rms for one in apart]


@pytest.mark.parametrize("left", [{"bias": "k"}, {"activation": "k"}])
def test_what_is_left_alone(command: Command, left: dict[str, str]) -> None:
    before = projections("qkv", **left)
    after = command(before)
    assert command.said == "fuse.fc.py: fused 2 FULLY_CONNECTED into 1\n"
    assert operators(after)["FULLY_CONNECTED"] == 2
    assert_same(before, after)


def test_matrices_of_different_kinds_stay_apart(command: Command) -> None:
    before = projections("qk")
    quantize(before, find_recipe("dynamic_int8"))
    float32 = projections("q").graphs[0].initializers["q.weight"]
    value = before.graphs[0].initializers["q.weight"]
    value.const_value, value.type = float32.const_value, float32.type
    value.meta.clear()
    after = command(before)
    assert command.said == "fuse.fc.py: nothing to fuse\n"
    assert operators(after)["FULLY_CONNECTED"] == 2


def test_weights_that_are_still_in_a_checkpoint_are_left_alone() -> None:
    model = projections("qk")
    for name, value in model.graphs[0].initializers.items():
        value.const_value = UnboundTensor(
            name, Path("model.safetensors"), name, value.dtype, (ROWS[name[0]], D)
        )
    FuseFc().apply(model, Namespace())
    assert operators(model)["FULLY_CONNECTED"] == 2


def test_a_whole_layer(command: Command) -> None:
    before = lower_to_litert(attention(Form(T=3, layout="BNTH")))
    after = command(before, "--check")
    assert command.said.splitlines()[0] == "fuse.fc.py: fused 3 FULLY_CONNECTED into 1"
    assert operators(after)["FULLY_CONNECTED"] == 2


# ---- ONNX --------------------------------------------------------------------------------------------

ONNX_PRODUCTS = {  # of one operator, with a matrix and a bias
    "MatMul": "{0}0 = MatMul (x, w{0}) ",
    "Gemm": "{0}0 = Gemm (x, w{0}, b{0}) ",
    "transposed Gemm": "{0}0 = Gemm <transB = 1> (x, t{0}) ",
}


def onnx_products(nodes: str, opset: int = 17) -> onnx.ModelProto:
    """Three products of x [T, 4] with matrices of 6, 2 and 3 columns."""
    proto = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[T, 4] x) => (float[T, 6] q, float[T, 2] k, float[T, 3] v)
        {{ {nodes} q = Neg (q0) k = Neg (k0) v = Neg (v0) }}""")
    for seed, (name, columns) in enumerate({"q": 6, "k": 2, "v": 3}.items()):
        matrix, bias = weights(4, columns, seed=seed), weights(columns, seed=seed)
        for key, array in (("w", matrix), ("t", np.ascontiguousarray(matrix.T)), ("b", bias)):
            if f"{key}{name}" in nodes:
                proto.graph.initializer.append(onnx.numpy_helper.from_array(array, f"{key}{name}"))
    return proto


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("kind", ONNX_PRODUCTS)
def test_products_of_onnx(kind: str, opset: int, tmp_path: Path) -> None:
    before = tmp_path / "before.onnx"
    before.write_bytes(
        onnx_products("".join(ONNX_PRODUCTS[kind].format(name) for name in "qkv"), opset).SerializeToString()
    )
    after = tmp_path / "after.onnx"
    assert FuseFc.main([str(before), "--check", "-o", str(after)]) == 0
    proto = onnx.load(after)
    onnx.checker.check_model(proto, full_check=True)
    assert [node.op_type for node in proto.graph.node] == [kind.split()[-1], "Split", *["Neg"] * 3]
    x = weights(5, 4, seed=9)
    expected, actual = (ReferenceEvaluator(str(path)).run(None, {"x": x}) for path in (before, after))
    for wanted, array in zip(expected, actual, strict=True):
        np.testing.assert_array_equal(array, wanted)


def test_blocks_of_onnx_runtime(tmp_path: Path) -> None:
    """MatMulNBits: the rows of int4 blocks and their scales are stacked."""
    make = onnx.helper.make_node
    common = {"domain": "com.microsoft", "K": 32, "bits": 4, "block_size": 32}
    nodes = [make("MatMulNBits", ["x", f"w{n}", f"s{n}"], [f"y{n}"], N=n, **common) for n in (16, 32)]
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["T", size])
        for name, size in (("x", 32), ("y16", 16), ("y32", 32))
    ]
    graph = onnx.helper.make_graph(nodes, "g", values[:1], values[1:])
    generator = np.random.default_rng(0)
    for n in (16, 32):
        blocks = generator.integers(0, 256, (n, 1, 16), np.uint8)
        for name, array in ((f"w{n}", blocks), (f"s{n}", weights(n, seed=n))):
            graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    before.write_bytes(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
    assert FuseFc.main([str(before), "--check", "-o", str(after)]) == 0
    product, split = onnx.load(after).graph.node
    assert {a.name: a.i for a in product.attribute}["N"] == 48
    assert list(split.output) == ["y16", "y32"]


@pytest.mark.parametrize(
    "nodes",
    [
        "q0 = MatMul (x, wq) n = Neg (x) k0 = MatMul (n, wk) a = Abs (x) v0 = MatMul (a, wv)",
        "q0 = MatMul (x, wq) k0 = Gemm (x, wk) v0 = Gemm <alpha = 2.0> (x, wv)",
        "q0 = MatMul (x, wq) n = Neg (x) k0 = MatMul (n, wk) c = Abs (wv) v0 = MatMul (x, c)",
    ],
)
def test_other_products_of_onnx_stay(nodes: str, tmp_path: Path) -> None:
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    before.write_bytes(onnx_products(nodes).SerializeToString())
    assert FuseFc.main([str(before), "-o", str(after)]) == 0
    operators = [[node.op_type for node in onnx.load(path).graph.node] for path in (before, after)]
    assert operators[0] == operators[1]
