"""Parameters become constants: bytes of the checkpoint, or references to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from export.model import LanguageModel
from export.options import WeightsForm
from export.parameter_binding import bind_parameters, drop_unread, unused_tensors
from export.parameter_matching import match_parameters
from o2o.errors import ModelError
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.weights.binding import weight_of
from o2o.weights.checkpoint import open_checkpoint
from o2o.weights.checkpoint_tensor import CheckpointTensor
from o2o.weights.stored_tensor import StoredTensor
from tests.checkpoints import GROUPED, write_checkpoint
from tests.export.test_parameter_matching import edited, matched


def test_bind_takes_parameters_from_the_inputs(tmp_path: Path) -> None:
    found = matched(write_checkpoint(tmp_path, **GROUPED))
    x = ir.Value(name="x", shape=ir.Shape([48]), type=ir.TensorType(ir.DataType.FLOAT))
    w = ir.Value(name="model.norm.weight", shape=ir.Shape([48]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.Node("circle", "MUL", [x, w])
    graph = ir.Graph([x, w], node.outputs, nodes=[node], opset_imports={"circle": 1})

    bind_parameters(graph, {"model.norm.weight": found["model.norm.weight"]})

    assert list(graph.inputs) == [x]
    assert graph.initializers == {"model.norm.weight": w}
    assert w.const_value is not None
    np.testing.assert_array_equal(w.const_value.numpy(), found["model.norm.weight"].read_float32())


def graph_of(parameter: str, shape: tuple[int, ...]) -> ir.Graph:
    """x * parameter, both inputs."""
    x, w = (
        ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
        for name in ("x", parameter)
    )
    node = ir.Node("circle", "MUL", [x, w])
    return ir.Graph([x, w], node.outputs, nodes=[node], opset_imports={"circle": 1})


def test_external_weights_are_references_unless_they_are_small(tmp_path: Path) -> None:
    found = matched(write_checkpoint(tmp_path, **GROUPED, dtype="bfloat16"))
    large, small = "model.embed_tokens.weight", "model.norm.weight"
    for name, kind in ((large, UnboundTensor), (small, CheckpointTensor)):
        graph = graph_of(name, found[name].shape)
        bind_parameters(graph, found, "external")
        constant = graph.initializers[name].const_value
        assert type(constant) is kind
        weight = weight_of(constant) if isinstance(constant, UnboundTensor) else constant
        np.testing.assert_array_equal(weight.numpy(), found[name].read_float32())


@pytest.mark.parametrize("form", ["embed", "external"])
def test_float16_matrices_are_made_float32_again(tmp_path: Path, form: WeightsForm) -> None:
    found = matched(write_checkpoint(tmp_path, **GROUPED))
    large, small = "model.embed_tokens.weight", "model.norm.weight"
    graph = graph_of(large, found[large].shape)
    bind_parameters(graph, found, form, "float16")
    half = graph.initializers[f"{large}_float16"]
    numbers = found[large].read_float32().astype(np.float16)
    tensor = half.const_value
    assert tensor is not None
    weight = weight_of(tensor) if isinstance(tensor, UnboundTensor) else tensor
    np.testing.assert_array_equal(weight.numpy(), numbers)
    dequantize, multiply = graph
    assert (dequantize.op_type, dequantize.inputs[0]) == ("DEQUANTIZE", half)
    assert multiply.inputs[1] is dequantize.outputs[0]
    assert (dequantize.outputs[0].name, dequantize.outputs[0].dtype) == (large, ir.DataType.FLOAT)

    graph = graph_of(small, found[small].shape)
    bind_parameters(graph, found, form, "float16")
    assert graph.initializers[small].dtype == ir.DataType.FLOAT, "a vector, and small"


@pytest.mark.parametrize(("rows", "kind"), [(24, CheckpointTensor), (48, UnboundTensor)])
def test_what_is_small_when_it_is_halved_is_no_reference(tmp_path: Path, rows: int, kind: type) -> None:
    """A reference is large, so that nobody needs its numbers to know the graph."""
    numbers = np.ones((rows, 48), np.float32)
    (tmp_path / "w").write_bytes(numbers.tobytes())
    found = {"w": StoredTensor("w", tmp_path / "w", "F32", (rows, 48), 0, numbers.nbytes)}
    graph = graph_of("w", (rows, 48))
    bind_parameters(graph, found, "external", "float16")
    assert type(graph.initializers["w_float16"].const_value) is kind


def test_integers_are_refused(tmp_path: Path) -> None:
    change = {"model.norm.weight": torch.zeros(48, dtype=torch.int64)}
    directory = edited(tmp_path, lambda tensors: tensors.update(change))
    stored = {"model.norm.weight": open_checkpoint(directory).tensors["model.norm.weight"]}
    with pytest.raises(ModelError, match=r"model\.norm\.weight is stored as I64"):
        bind_parameters(graph_of("model.norm.weight", (48,)), stored)


def test_what_is_not_needed_is_known(tmp_path: Path) -> None:
    def twice(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(5)

    directory = edited(tmp_path, twice)
    checkpoint = open_checkpoint(directory)
    found = match_parameters(LanguageModel.read(directory), checkpoint)
    large, small = "model.embed_tokens.weight", "model.norm.weight"
    for parameter in (large, small):
        graph = graph_of(parameter, found[parameter].shape)
        bind_parameters(graph, found, "external")
        (names,) = unused_tensors(checkpoint, graph, {parameter: found[parameter]}).values()
        names_with_digest = {name for name, digest in names.items() if digest}
        assert names_with_digest == {parameter} - {large}, "small ones are in the graph, with a digest"
        assert set(names) == checkpoint.tensors.keys() - {large if parameter == large else ""}


def test_parameters_that_nothing_reads_are_dropped(tmp_path: Path) -> None:
    """Else bind.weights.py would look for a constant that dead code elimination removed."""
    directory = write_checkpoint(tmp_path, **GROUPED)
    found = matched(directory)
    read, unread = "model.norm.weight", "model.embed_tokens.weight"
    graph = graph_of(read, found[read].shape)
    graph.inputs.append(ir.Value(name=unread, shape=ir.Shape(found[unread].shape)))
    kept = drop_unread(graph, {name: found[name] for name in (read, unread)})
    assert list(kept) == [read]
    assert [value.name for value in graph.inputs] == ["x", read]
    bind_parameters(graph, kept, "external")
    (unused,) = unused_tensors(open_checkpoint(directory), graph, kept).values()
    assert unused[unread] == ""
