"""A model that is handed over is the model that reading its file gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from o2o import formats
from o2o.contract import Role
from o2o.formats.concatenated_tensor import ConcatenatedTensor
from o2o.formats.fingerprint import fingerprint
from o2o.formats.handover import HandedModel, Handover
from o2o.formats.tensors import LARGE, SourceTensor, constant_array
from o2o.lower.litert import lower_to_litert
from o2o.model import Model
from o2o.quantization.quantize import quantize
from o2o.quantization.recipes import find_recipe
from tests.o2o.fused_graphs import Form, attention
from tests.o2o.graphs import SAMPLES, Graph, decoder, float_models, weights
from tests.o2o.language_model_graphs import language_model

MODELS = {
    **SAMPLES,
    "language model": language_model,
    "fused": lambda: attention(Form(layout="BTNH")),
    "lowered": lambda: lower_to_litert(attention(Form(layout="BNTH"))),
}


def assert_as_read_again(model: Model, hand_over: Handover | None = None) -> Model:
    data = formats.dumps(model)
    read = formats.loads(data)
    handed = (hand_over or Handover())(model)
    assert fingerprint(handed) == fingerprint(read)
    assert _details(handed) == _details(read)
    assert formats.dumps(handed) == formats.dumps(read)
    return handed


def _details(model: Model) -> list[Any]:
    """What fingerprints leave out: the order of constants, metadata in memory, where bytes are shared."""
    details: list[Any] = [model.unused, list(model.fields)]
    for graph in model.graphs:
        details.append(list(graph.initializers))
        details.append([value.name for value in graph.meta.get("loose", ())])
        details += [(node.meta.get("options", 0), sorted(node.meta), len(node.attributes)) for node in graph]
        for value in (*graph.inputs, *graph.initializers.values(), *(v for n in graph for v in n.outputs)):
            tensor = value.const_value
            kind = None if tensor is None else (type(tensor), tensor.dtype, tuple(tensor.shape.numpy()))
            details.append((value.name, value.meta.get("name"), sorted(value.meta), value.type, kind))
    return details


@pytest.mark.parametrize("name", sorted(MODELS))
def test_models_in_memory(name: str) -> None:
    """Models that were built, and models that were read."""
    assert_as_read_again(MODELS[name]())
    assert_as_read_again(formats.loads(formats.dumps(MODELS[name]())))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_model_that_was_handed_over_before(name: str) -> None:
    hand_over = Handover()
    assert_as_read_again(hand_over(MODELS[name]()), hand_over)


@settings(max_examples=30, deadline=None)
@given(float_models())
def test_any_model(model: Model) -> None:
    assert_as_read_again(model)


def test_numbers_get_the_width_of_the_schema() -> None:
    graph = Graph("g")
    x = graph.input("x", [2])
    y = graph.op("SOFTMAX", [x], [2], name="y", beta=0.1)
    graph.output(y)
    model = assert_as_read_again(graph.model())
    (node,) = model.graphs[0]
    assert node.attributes["beta"].as_float() == float(np.float32(0.1))


def test_roles_of_values_that_no_signature_names_are_lost() -> None:
    model = decoder()
    for graph in model.graphs:
        next(iter(graph)).outputs[0].meta["role"] = Role("logits")
    handed = assert_as_read_again(model)
    assert all("role" not in next(iter(graph)).outputs[0].meta for graph in handed.graphs)


def test_constants_that_are_computed_get_their_bytes() -> None:
    graph = Graph("g")
    x = graph.input("x", [1, 64])
    first, second = (graph.constant(f"w{i}", weights(32, 64, seed=i)) for i in range(2))
    both = ConcatenatedTensor("w", [first.const_value, second.const_value])  # type: ignore[list-item]
    w = ir.Value(name="w", shape=ir.Shape([64, 64]), type=ir.TensorType(ir.DataType.FLOAT), const_value=both)
    graph.ir.register_initializer(w)
    graph.output(graph.fc(x, w, "y"))
    handed = assert_as_read_again(graph.model())
    stored = handed.graphs[0].initializers["w"]
    assert isinstance(stored.const_value, SourceTensor)
    np.testing.assert_array_equal(
        constant_array(stored), np.concatenate([weights(32, 64, seed=i) for i in range(2)])
    )


def test_quantized_weights_are_computed_once() -> None:
    graph = Graph("g")
    x = graph.input("x", [1, 128])
    graph.output(graph.fc(x, graph.constant("w", weights(64, 128)), "y"))
    model = graph.model()
    quantize(model, find_recipe("dynamic_int8"))
    handed = assert_as_read_again(model)
    assert all(
        isinstance(value.const_value, SourceTensor)
        for value in handed.graphs[0].initializers.values()
        if value.const_value is not None and value.const_value.nbytes >= LARGE
    )


def test_a_handed_model_is_taken_once() -> None:
    source = HandedModel(decoder(), [])
    source.take()
    with pytest.raises(AssertionError):
        source.take()
