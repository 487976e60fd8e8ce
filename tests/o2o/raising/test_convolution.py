"""Convolutions of signals and images."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.o2o.raising.evaluation import assert_same, operators, parsed

IMAGE, SIGNAL = "float[2,4,7,6] x", "float[2,4,9] x"


def model(inputs: str, nodes: str, weights: tuple[int, ...], bias: int = 0) -> onnx.ModelProto:
    rank = len(weights)
    proto = parsed(inputs, f"float[{','.join('ABCD'[:rank])}] y", nodes)
    random = np.random.default_rng(1)
    proto.graph.initializer.append(
        onnx.numpy_helper.from_array(random.standard_normal(weights).astype(np.float32), "w")
    )
    if bias:
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(random.standard_normal(bias).astype(np.float32), "b")
        )
    return proto


@pytest.mark.parametrize(
    ("attributes", "weights"),
    [
        ("", (3, 4, 3, 2)),
        ("<pads = [1, 0, 2, 1], strides = [2, 1]>", (3, 4, 3, 2)),
        ('<auto_pad = "SAME_LOWER", strides = [2, 2]>', (3, 4, 2, 3)),
        ("<dilations = [2, 1]>", (3, 4, 3, 2)),
        ("<group = 4>", (8, 1, 3, 2)),
        ("<group = 2>", (6, 2, 3, 2)),
    ],
)
def test_images(attributes: str, weights: tuple[int, ...]) -> None:
    assert_same(model(IMAGE, f"y = Conv {attributes} (x, w, b)", weights, weights[0]), tolerance=1e-4)


@pytest.mark.parametrize("attributes", ["", "<group = 2, pads = [1, 2], strides = [2]>", "<group = 4>"])
def test_signals(attributes: str) -> None:
    groups = int(attributes[9:10] or 1)
    assert_same(model(SIGNAL, f"y = Conv {attributes} (x, w)", (4, 4 // groups, 3)), tolerance=1e-4)


def test_weights_are_transposed_while_they_are_written() -> None:
    raised = assert_same(model(IMAGE, "y = Conv (x, w)", (3, 4, 3, 2)), tolerance=1e-4)
    assert operators(raised) == ["TRANSPOSE", "CONV_2D", "TRANSPOSE"]


@pytest.mark.parametrize(
    "attributes",
    [
        "",
        "<strides = [2, 3]>",
        "<strides = [2, 2], pads = [1, 0, 1, 1], output_padding = [1, 0]>",
        "<strides = [3, 3], output_padding = [1, 2]>",
    ],
)
def test_transposed_convolutions(attributes: str) -> None:
    assert_same(model(IMAGE, f"y = ConvTranspose {attributes} (x, w, b)", (4, 3, 3, 2), 3), tolerance=1e-4)
