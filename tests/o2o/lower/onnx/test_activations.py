"""Activations that exporters decompose, as ONNX Runtime computes them."""

from __future__ import annotations

import pytest

from o2o.lower.onnx import lower_to_onnx
from o2o.model import Model
from tests.o2o.lower.onnx.decoders import answers
from tests.o2o.lower.onnx.running import FORMS, Running, checked
from tests.o2o.lower.onnx.test_operators import with_operator
from tests.o2o.rewriting.test_activations import ACTIVATIONS, OTHERS, Chain, Write
from tests.tolerances import assert_close

pytest.importorskip("onnxruntime")


def model_of(write: Write) -> Model:
    """A decoder with the activation behind its logits."""
    return with_operator(lambda graph, x: write(Chain(graph), x))


@pytest.mark.parametrize("name", [*ACTIVATIONS, *OTHERS])
def test_in_onnx(name: str) -> None:
    write = ACTIVATIONS[name][0] if name in ACTIVATIONS else OTHERS[name]
    ids = [3, 1, 4]
    expected = answers(model_of(write), ids)
    for form in FORMS:
        running = Running(checked(model_of(write), form, logits="all"))
        assert_close(running.step(ids, 0)[0], expected)


def test_one_operator() -> None:
    for name, operator in {"GPT-2": "Gelu", "quick GELU": "QuickGelu"}.items():
        kinds = {node.op_type for node in lower_to_onnx(model_of(ACTIVATIONS[name][0]), "ort").graph}
        assert operator in kinds
        assert not {"Tanh", "Pow", "Sigmoid"} & kinds
