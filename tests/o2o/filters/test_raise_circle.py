"""raise.circle: TFLite in, Circle out, where nothing is lost."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from o2o import formats
from o2o.filters.fuse_rms_norm import FuseRmsNorm
from o2o.lower.litert import lower_to_litert
from tests.o2o.filters.conftest import Command
from tests.o2o.fused_graphs import Form, attention
from tests.o2o.graphs import SAMPLES, Graph, decoder, operators, weights


@pytest.mark.parametrize("sample", sorted(SAMPLES))
def test_there_and_back(command: Command, sample: str) -> None:
    """What was Circle, or TFLite, is again what it was, but for the history and what lowering tidies."""
    model = lower_to_litert(SAMPLES[sample]())
    before = formats.dumps(model)
    raised = command(formats.loads(before))
    assert raised.format == "circle"
    raised.history = []
    assert formats.dumps(lower_to_litert(raised)) == before


def test_the_same_numbers(command: Command) -> None:
    command(lower_to_litert(attention(Form(T=3, layout="BTNH"))), "--check")
    assert "the same, within 0.0e+00" in command.said


def test_what_is_raised_can_be_fused(command: Command) -> None:
    graph = Graph("main")
    x = graph.input("x", [1, 3, 6])
    graph.output(graph.op("RMS_NORM", [x, graph.constant("w", weights(6))], [1, 3, 6], name="y", epsilon=0.5))
    raised = command(lower_to_litert(graph.model()))
    FuseRmsNorm().apply(raised, _Quiet())
    assert operators(raised)["RMS_NORM"] == 1


class _Quiet:
    explain = False


def test_circle_passes_as_it_is(command: Command) -> None:
    before = formats.dumps(decoder())
    assert formats.dumps(command(formats.loads(before))) == before
    assert command.said == "raise.circle.py: the model is Circle already and passes unchanged\n"


def test_a_tensor_type_that_circle_lacks(command: Command) -> None:
    graph = Graph("main")
    graph.output(graph.op("RESHAPE", [graph.input("x", [4], ir.DataType.FLOAT8E5M2)], [2, 2], name="y"))
    code, said = command.refusal(graph.model(format="tflite"))
    assert (code, said) == (1, "x: circle has no tensor type FLOAT8E5M2")


def test_an_option_that_circle_lacks(command: Command) -> None:
    graph = Graph("main")
    graph.output(graph.op("CAST", [graph.input("x", [4])], [4], name="a/y"))
    (node,) = graph.ir
    node.attributes["outDataType"] = ir.AttrInt64("outDataType", 22)
    code, said = command.refusal(graph.model(format="tflite"))
    assert code == 1
    assert said.startswith("CAST (a/y in main, module a): circle has no tensor type FLOAT8E5M2 (option")
