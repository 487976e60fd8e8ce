from __future__ import annotations

import onnx_ir as ir

from export.tensor_names import rename_tensors


def test_names_tell_modules_and_are_unique() -> None:
    def value(name: str) -> ir.Value:
        return ir.Value(name=name, shape=ir.Shape([4]), type=ir.TensorType(ir.DataType.FLOAT))

    def node(op_type: str, inputs: list[ir.Value], output: str) -> ir.Node:
        return ir.Node("circle", op_type, inputs, outputs=[value(output)])

    ids, up, down, half = value("tico::ids"), value("tico::w_0"), value("tico::w_1"), value("const_tensor")
    half.const_value = ir.tensor([0.5])
    first = node("CAST", [ids], "a.B::input_ids")  # a name that an end has
    gate = node("FULLY_CONNECTED", [first.outputs[0], up], "a.B::linear")
    scale = node("MUL", [gate.outputs[0], half], "a.B::mul")
    again = node("FULLY_CONNECTED", [scale.outputs[0], up], "a.B::linear_1")  # reads the same weight
    last = node("FULLY_CONNECTED", [again.outputs[0], down], "a.B::linear_2")
    graph = ir.Graph(
        [ids, up, down], last.outputs, nodes=[first, gate, scale, again, last], initializers=[half]
    )

    rename_tensors(graph, ["input_ids", "layers.0.mlp.up.weight", "layers.0.mlp.down.weight"], ["logits"])

    assert [v.name for v in graph.inputs] == [
        "input_ids",
        "layers.0.mlp.up.weight",
        "layers.0.mlp.down.weight",
    ]
    assert [n.outputs[0].name for n in graph] == [
        "input_ids_1",
        "layers.0.mlp.up",
        "layers.0.mlp.up/mul",
        "layers.0.mlp.up_1",
        "logits",
    ]
    assert list(graph.initializers) == ["const_tensor"]
