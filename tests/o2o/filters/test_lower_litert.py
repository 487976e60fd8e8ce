"""lower.litert: Circle in, TFLite out; the lowering itself is in tests/o2o/lower."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from ai_edge_litert.interpreter import Interpreter
from safetensors.numpy import save_file

from o2o import formats
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import CUSTOM_DOMAIN, Model
from o2o.weights.binding import unbound_tensors
from tests.o2o.filters.conftest import Command
from tests.o2o.fused_graphs import Form, attention
from tests.o2o.graphs import FLOAT, Graph, decoder, linear, operators, weights


def test_attention(command: Command) -> None:
    after = command(attention(Form(T=3, layout="BTNH")), "--check")
    assert after.format == "tflite"
    assert not operators(after)["ATTENTION"]
    first, second = command.said.splitlines()
    assert first.startswith("lower.litert.py: lowered 1 ATTENTION: ")
    assert first.endswith(" operators now")
    assert "checked on numpy and LiteRT: 3 outputs the same, within" in second
    names = [value.name for value in after.graphs[0].outputs]
    assert names == ["y", "present_key_0", "present_value_0"]
    assert after.history[-1]["filter"] == "lower.litert.py"


def test_litert_takes_the_file(command: Command, tmp_path: Path) -> None:
    """By its path: its id and version are TFLite's."""
    command(linear(), "-o", str(tmp_path / "unused"))
    code, target = command.run(linear())
    assert code == 0
    engine = Interpreter(model_path=str(target))
    engine.allocate_tensors()
    assert list(engine.get_signature_list()) == [signature.name for signature in linear().signatures]
    assert "nothing to lower in" in command.said


def test_tflite_passes_as_it_is(command: Command) -> None:
    once = command(decoder())
    before = formats.dumps(once)
    assert formats.dumps(command(once)) == before
    assert command.said == "lower.litert.py: the model is TFLite already and passes unchanged\n"


def referring(folder: Path) -> Model:
    """y = rms_norm(x) w', where w is in a checkpoint, and not small."""
    checkpoint = folder / "model.safetensors"
    save_file({"w": weights(400, 6)}, checkpoint)
    graph = Graph("main")
    x = graph.input("x", [1, 6])
    norm = graph.constant("norm", weights(6))
    y = graph.op("RMS_NORM", [x, norm], [1, 6], name="normalized", epsilon=1e-5)
    weight = graph.value("weight", [400, 6])
    weight.const_value = UnboundTensor(
        "weight",
        dtype=FLOAT,
        shape=(400, 6),
        path=str(checkpoint),
        tensor_name="w",
        stored_shape=(400, 6),
    )
    graph.ir.register_initializer(weight)
    graph.output(graph.fc(y, weight, "y"))
    return graph.model()


def test_weights_are_not_looked_at(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("chunks", "numpy", "tofile", "tobytes"):
        monkeypatch.setattr(UnboundTensor, method, lambda *_: pytest.fail("was read"))
    after = command(referring(tmp_path))
    assert [reference.tensor_name for _, reference in unbound_tensors(after)] == ["w"]
    assert not operators(after)["RMS_NORM"]


def one(op_type: str, name: str) -> Model:
    graph = Graph("decode")
    operands = [graph.input(f"x{k}", [1, 1, 2, 4]) for k in range(3)]
    graph.output(graph.op(op_type, operands, [1, 1, 2, 4], name=name))
    return graph.model()


def test_an_unsupported_operator_is_named_with_its_place_and_module(command: Command) -> None:
    name = "model.layers.0.self_attn/mul_9"
    assert command.refusal(one("INSTANCE_NORM", name)) == (
        1,
        f"LiteRT has no operator INSTANCE_NORM ({name} in decode, module model.layers.0.self_attn)",
    )
    _, message = command.refusal(one("STABLEHLO_ADD".replace("ADD", "TANH"), "y"))
    assert message == "LiteRT has no operator STABLEHLO_TANH (y in decode)", "though its schema has"


def test_custom_operators_are_listed(command: Command) -> None:
    graph = Graph("main")
    x, y = graph.input("x", [2]), graph.value("y", [2])
    graph.node("MyOperator", [x], [y], domain=CUSTOM_DOMAIN)
    graph.output(y)
    command(graph.model())
    assert "the runtime must know these custom operators: MyOperator" in command.said


@pytest.mark.parametrize("shape", ["demo", "grouped"])
def test_exported_static_decode(
    command: Command, exported_model: Callable[[str, str], Path], shape: str
) -> None:
    after = command(formats.load(exported_model(shape, "static")), "--check")
    assert "the same, within" in command.said
    assert not operators(after)["BROADCAST_TO"], "no heads are repeated"


def test_versions(command: Command) -> None:
    graph = Graph("main")
    to = graph.constant("to", np.int32([2, 3]))
    graph.output(graph.op("BROADCAST_TO", [graph.input("x", [1, 3]), to], [2, 3], name="y"))
    (node,) = command(graph.model()).graphs[0]
    assert node.version == 2


def test_a_quantized_operand_is_refused(command: Command) -> None:
    model = attention(Form())
    model.graphs[0].inputs[0].type = ir.TensorType(ir.DataType.INT8)
    code, message = command.refusal(model)
    assert code == 1
    assert "is INT8, not float32" in message
