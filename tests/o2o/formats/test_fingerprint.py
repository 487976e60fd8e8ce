"""A fingerprint tells graphs apart by whatever they say, but not by large constants' numbers or places."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from o2o import formats
from o2o.contract import Role
from o2o.formats import write
from o2o.formats.fingerprint import fingerprint
from o2o.formats.tensors import LARGE
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import Model
from o2o.streams.source import PipeSource
from o2o.weights.binding import bind
from tests.o2o.formats.trees import repacked
from tests.o2o.graphs import SAMPLES, Graph, decoder, sign, weights
from tests.o2o.streams.test_source import piped

LARGE_NAME = "head"  # of the decoder's constants


def node_of(model: Model, op_type: str, graph: int = 0) -> ir.Node:
    return next(node for node in model.graphs[graph] if node.op_type == op_type)


def value_of(model: Model, name: str, graph: int = 0) -> ir.Value:
    owner = model.graphs[graph]
    values = [
        *owner.inputs,
        *owner.initializers.values(),
        *(v for node in owner for v in node.outputs),
    ]
    return next(value for value in values if value.name == name)


def scaled(value: ir.Value, scale: float) -> None:
    value.meta["fields"]["quantization"].scale[0] = scale


CHANGES: dict[str, tuple[str, Callable[[Model], Any]]] = {
    "option": ("decoder", lambda m: node_of(m, "GATHER").attributes.update(axis=ir.AttrInt64("axis", 1))),
    "option of the other graph": (
        "decoder",
        lambda m: node_of(m, "FULLY_CONNECTED", 1).attributes.update(
            fusedActivationFunction=ir.AttrInt64("fusedActivationFunction", 1)
        ),
    ),
    "operator": ("decoder", lambda m: setattr(node_of(m, "MUL"), "op_type", "SUB")),
    "version": ("decoder", lambda m: setattr(node_of(m, "MUL"), "version", 2)),
    "operands": (
        "decoder",
        lambda m: node_of(m, "MUL").replace_input_with(1, m.graphs[0].inputs[2]),
    ),
    "name of a value": ("decoder", lambda m: setattr(value_of(m, "shifted"), "name", "moved")),
    "name of an input": ("decoder", lambda m: setattr(m.graphs[0].inputs[1], "name", "position")),
    "name of a large constant": ("decoder", lambda m: setattr(value_of(m, LARGE_NAME), "name", "lm_head")),
    "name of a graph": ("decoder", lambda m: setattr(m.graphs[0], "name", "prompt")),
    "shape of a value": ("decoder", lambda m: setattr(value_of(m, "hidden"), "shape", ir.Shape([4, 8]))),
    "shape of an input": ("decoder", lambda m: setattr(m.graphs[0].inputs[0], "shape", ir.Shape([4]))),
    "shape of a large constant": (
        "decoder",
        lambda m: setattr(value_of(m, LARGE_NAME), "shape", ir.Shape([1000, 16])),
    ),
    "dtype": ("decoder", lambda m: setattr(m.graphs[0].inputs[0], "dtype", ir.DataType.INT32)),
    "small constant": (
        "decoder",
        lambda m: setattr(value_of(m, "half"), "const_value", ir.Tensor(np.float32([0.25]))),
    ),
    "order of outputs": ("decoder", lambda m: m.graphs[0].outputs.reverse()),
    "order of operators": (
        "decoder",
        lambda m: m.graphs[0].insert_before(m.graphs[0][0], node_of(m, "MUL")),
    ),
    "order of graphs": ("decoder", lambda m: m.graphs.reverse()),
    "name of a signature": ("decoder", lambda m: setattr(m.signatures[0], "name", "prompt")),
    "name at an end of a signature": (
        "decoder",
        lambda m: m.signatures[0].inputs.update(ids=m.signatures[0].inputs.pop("input_ids")),
    ),
    "graph of a signature": ("conditional", lambda m: sign(m, m.graphs[1], "unused")),
    "role": ("decoder", lambda m: m.graphs[0].inputs[2].meta.update(role=Role("key_cache", 0, "BTNH"))),
    "layer": ("decoder", lambda m: m.graphs[0].inputs[2].meta.update(role=Role("key_cache", 1, "BNTH"))),
    "branch": (
        "conditional",
        lambda m: node_of(m, "IF").attributes.update(
            thenSubgraphIndex=ir.AttrGraph("thenSubgraphIndex", m.graphs[2])
        ),
    ),
    "scale of a constant": ("quantized", lambda m: scaled(value_of(m, "weight"), 0.75)),
    "scale of a value": ("quantized", lambda m: scaled(value_of(m, "q"), 0.75)),
    "quantized axis": (
        "quantized",
        lambda m: setattr(value_of(m, "weight").meta["fields"]["quantization"], "quantizedDimension", 1),
    ),
    "scales that another constant is": (
        "blockwise",
        lambda m: value_of(m, "weight").meta.update(quantization_constants={"scales": value_of(m, "before")}),
    ),
    "sparsity": (
        "sparse",
        lambda m: setattr(value_of(m, "weight").meta["fields"]["sparsity"], "blockMap", np.int32([0])),
    ),
    "state": (
        "stateful",
        lambda m: node_of(m, "SVDF").inputs[4].meta.update(fields={}),  # type: ignore[union-attr]
    ),
    "shape of a state": (
        "stateful",
        lambda m: setattr(node_of(m, "SVDF").inputs[4], "shape", ir.Shape([2, 10])),
    ),
    "custom options": (
        "custom",
        lambda m: node_of(m, "MyOp").meta.update(fields={"customOptions": np.uint8([1, 2])}),
    ),
    "custom code": ("custom", lambda m: setattr(node_of(m, "MyOp"), "op_type", "ItsOp")),
    "intermediate value": (
        "custom",
        lambda m: setattr(node_of(m, "YourOp").meta["intermediates"][0], "shape", ir.Shape([6])),
    ),
    "no intermediate value": ("custom", lambda m: node_of(m, "YourOp").meta.pop("intermediates")),
    "an output less": ("custom", lambda m: m.graphs[0].outputs.pop()),
    "dynamic shape": (
        "variant",
        lambda m: m.graphs[0].inputs[0].meta["fields"].update(shapeSignature=np.int32([-1, -1])),
    ),
    "variant": (
        "variant",
        lambda m: setattr(value_of(m, "y").meta["fields"]["variantTensors"][0], "type", 3),
    ),
    "container of a variable": (
        "call_once",
        lambda m: node_of(m, "VAR_HANDLE").attributes.update(sharedName=ir.AttrString("sharedName", "other")),
    ),
    "loose value": ("shared_bytes", lambda m: m.graphs[0].meta["loose"].clear()),
    "metadata": ("odd_names", lambda m: m.metadata.pop()),
    "bytes of metadata": ("odd_names", lambda m: m.metadata.append(("debug", b"x"))),
    "description": ("odd_names", lambda m: m.fields.update(description="other")),
    "history": ("decoder", lambda m: m.history.append({"filter": "gc.py"})),
    "format": ("decoder", lambda m: setattr(m, "format", "tflite")),
}


@pytest.mark.parametrize("what", CHANGES)
def test_it_changes_with(what: str) -> None:
    sample, change = CHANGES[what]
    model, same = SAMPLES[sample](), SAMPLES[sample]()
    before = fingerprint(model)
    assert fingerprint(same) == before
    change(model)
    assert fingerprint(model) != before


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_it_survives_reading_and_writing(name: str) -> None:
    data = formats.dumps(SAMPLES[name]())
    model = formats.loads(data)
    assert fingerprint(formats.loads(formats.dumps(model))) == fingerprint(model)


def test_all_samples_differ() -> None:
    assert len({fingerprint(make()) for make in SAMPLES.values()}) == len(SAMPLES)


def test_it_does_not_change_with_large_numbers_or_their_place(tmp_path: Path) -> None:
    """Inside, by offset, in a pipe, from another writer, other numbers: one graph."""
    data = formats.dumps(decoder())
    expected = fingerprint(formats.loads(data))
    outside = io.BytesIO()
    write(decoder(), outside, limit=5000)
    (tmp_path / "model").write_bytes(data)
    other = decoder()
    for graph in other.graphs:
        graph.initializers[LARGE_NAME].const_value = ir.Tensor(weights(2000, 8, seed=5))
    forms = [
        formats.loads(outside.getvalue()),
        formats.loads(formats.dumps(other)),
        formats.load(tmp_path / "model"),
        formats.read(PipeSource(piped(data), "pipe")),
    ]
    assert [fingerprint(model) for model in forms] == [expected] * len(forms)


def test_whether_large_constants_share_their_bytes_does_not_matter() -> None:
    model = decoder()
    before = fingerprint(model)
    model.graphs[1].initializers[LARGE_NAME].const_value = ir.Tensor(weights(2000, 8, seed=1))
    assert fingerprint(model) == before


def of_checkpoint(path: Path, kind: str) -> Model:
    array = weights(64, 48)
    numbers = array if kind == "F32" else array.astype(np.float16)
    header = f'{{"w":{{"dtype":"{kind}","shape":[64,48],"data_offsets":[0,{numbers.nbytes}]}}}}'.encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + numbers.tobytes())
    graph = Graph("main")
    weight = graph.constant("w", array)
    weight.const_value = UnboundTensor("w", path, "w", ir.DataType.FLOAT, (64, 48))
    graph.output(graph.fc(graph.input("x", [1, 48]), weight, "y"))
    return graph.model()


def test_nor_does_a_reference_or_the_file_that_it_is_to(tmp_path: Path) -> None:
    model, elsewhere = (of_checkpoint(tmp_path / f"{kind}.safetensors", kind) for kind in ("F32", "F16"))
    (tmp_path / "F16.safetensors").rename(tmp_path / "gone")
    expected = fingerprint(model)
    assert fingerprint(elsewhere) == expected, "and no file is read"
    bind(model)
    assert fingerprint(model) == expected
    assert fingerprint(formats.loads(formats.dumps(model))) == expected


@pytest.mark.parametrize(("size", "counts"), [(LARGE - 4, True), (LARGE, False)])
def test_where_large_begins(size: int, counts: bool) -> None:
    prints = set()
    for number in (1, 2):
        graph = Graph("main")
        graph.output(graph.constant("w", np.full(size // 4, number, np.int32)))
        prints.add(fingerprint(formats.loads(formats.dumps(graph.model()))))
    assert (len(prints) == 2) == counts


def test_another_writer_gives_the_same_graph() -> None:
    data = formats.dumps(decoder())
    assert fingerprint(formats.loads(repacked(data))) == fingerprint(formats.loads(data))
