"""From one dialect to the other and back: nothing is lost, or it is said what would be."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from o2o import formats
from o2o.errors import ModelError
from o2o.formats.dialects import convert
from o2o.formats.schema import CIRCLE, TFLITE
from o2o.model import Format, Model
from tests.o2o.graphs import FLOAT, SAMPLES, Graph, feeds, linear, run

UINT4 = ir.DataType.UINT4


@pytest.mark.parametrize("sample", sorted(SAMPLES))
def test_there_and_back_is_nothing(sample: str) -> None:
    before = formats.dumps(SAMPLES[sample]())
    model = formats.loads(before)
    own: Format = model.format
    other: Format = "circle" if own == "tflite" else "tflite"
    convert(model, other)
    model = formats.loads(formats.dumps(model))
    assert model.format == other
    convert(model, own)
    assert formats.dumps(model) == before


def test_numbers_stay() -> None:
    before, after = linear(), linear()
    convert(after, "tflite")
    given = feeds(before)
    for name, array in run(before, given).items():
        np.testing.assert_array_equal(run(after, given)[name], array)


def test_tensor_types_in_options_are_renumbered() -> None:
    """Of all types that both have, uint4 alone has two numbers."""
    codes = {"inDataType": CIRCLE.dtype_codes[UINT4], "outDataType": CIRCLE.dtype_codes[FLOAT]}
    graph = Graph("main")
    graph.output(graph.op("CAST", [graph.input("x", [4], UINT4)], [4], FLOAT, "y", **codes))
    for node in graph.ir:
        for name, code in codes.items():
            node.attributes[name] = ir.AttrInt64(name, code)
    model = graph.model()
    before = formats.dumps(model)
    assert CIRCLE.dtype_codes[UINT4] != TFLITE.dtype_codes[UINT4]
    convert(model, "tflite")
    (node,) = formats.loads(formats.dumps(model)).graphs[0]
    assert node.attributes["inDataType"].value == TFLITE.dtype_codes[UINT4]
    convert(model, "circle")
    assert formats.dumps(model) == before


def one(op_type: str, format: Format, name: str = "model.layers.0.self_attn/y", **options: Any) -> Model:
    graph = Graph("decode")
    graph.output(graph.op(op_type, [graph.input("x", [1, 4])], [1, 4], name=name))
    (node,) = graph.ir
    for key, value in options.items():
        node.attributes[key] = ir.AttrInt64(key, value)
    return graph.model(format=format)


def with_field(model: Model, key: str, item: Any) -> Model:
    for node in model.graphs[0]:
        node.meta["fields"] = {f"options.{key}": item}
    return model


PLACE = r"model.layers.0.self_attn/y in decode, module model.layers.0.self_attn\)"


@pytest.mark.parametrize(
    ("model", "to", "message"),
    [
        (one("ROPE", "circle"), "tflite", rf"tflite has no operator ROPE \({PLACE}"),
        (one("CAST", "tflite", inDataType=19, outDataType=0), "circle", "circle has no tensor type INT2"),
        (one("ARG_MAX", "tflite", outputType=22), "circle", rf"ARG_MAX \({PLACE}: circle has no tensor type"),
        (
            one("FULLY_CONNECTED", "circle", weightsFormat=127),
            "tflite",
            rf"FULLY_CONNECTED \({PLACE}: tflite has no weights format 127",
        ),
        (
            with_field(one("FULLY_CONNECTED", "tflite"), "quantSpec", 1),
            "circle",
            rf"FULLY_CONNECTED \({PLACE}: circle has no option quantSpec",
        ),
    ],
)
def test_what_the_other_lacks_is_named(model: Model, to: Format, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        convert(model, to)


def test_a_tensor_that_the_other_lacks_is_named() -> None:
    """When it is written, before a byte of it is."""
    graph = Graph("main")
    x = graph.input("x", [4], ir.DataType.FLOAT8E5M2)
    graph.output(graph.op("RESHAPE", [x], [2, 2], name="y"))
    model = graph.model(format="tflite")
    convert(model, "circle")
    with pytest.raises(ModelError, match="x: circle has no tensor type FLOAT8E5M2"):
        formats.dumps(model)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("model.layers.0.self_attn/mul_9", "model.layers.0.self_attn"),
        ("model.layers.0.self_attn/attention/q", "model.layers.0.self_attn"),
        ("model.layers.0.mlp.up_proj", "model.layers.0.mlp.up_proj"),
        ("y", None),
    ],
)
def test_modules(name: str, module: str | None) -> None:
    model = one("NEG", "circle", name)
    (node,) = model.graphs[0]
    suffix = f", module {module}" if module else ""
    assert model.locate(model.graphs[0], node) == f"NEG ({name} in decode{suffix})"
