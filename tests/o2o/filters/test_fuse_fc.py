"""fuse.fc: several matrices of one input are one, and every result is the same."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

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
