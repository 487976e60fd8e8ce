"""Layers are what exporters name so; equal neighbours are one block, and drawn as one box."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir
import pytest

from o2o.visualization.blocks import blocks_of
from o2o.visualization.layer_drawing import draw_layers
from tests.o2o.graphs import Graph, weights


def layered(template: str, layers: int, odd: int | None = None) -> ir.Graph:
    """An ABS, layers of a product and a NEG (two in layer `odd`), and a TANH."""
    graph = Graph("main")
    value = graph.op("ABS", [graph.input("x", [1, 8])], [1, 8], name="embedded")
    for layer in range(layers):
        prefix = template.format(layer)
        value = graph.fc(value, graph.constant(f"{prefix}.weight", weights(8, 8, seed=layer)), f"{prefix}/fc")
        for k in range(2 if layer == odd else 1):
            value = graph.op("NEG", [value], [1, 8], name=f"value_{layer}_{k}")
    graph.output(
        graph.op("TANH", [graph.op("EXP", [value], [1, 8], name=f"{template.format(layers - 1)}/e")], [1, 8])
    )
    return graph.ir


@pytest.mark.parametrize(
    "template", ["model.layers.{}.mlp", "transformer.h.{}.attn", "layer_{}/x", "blocks.{}"]
)
def test_equal_layers_are_one_block(template: str) -> None:
    blocks = blocks_of(layered(template, 5))
    assert [block.title for block in blocks] == ["", "layers 0 to 3", "layer 4", ""]
    assert blocks[1].operators == Counter(FULLY_CONNECTED=1, NEG=1)
    assert blocks[1].weights == 8 * 8 * 4
    assert blocks[2].operators == Counter(FULLY_CONNECTED=1, NEG=1, EXP=1)


def test_a_layer_that_differs() -> None:
    blocks = blocks_of(layered("model.layers.{}.mlp", 6, odd=2))
    assert [block.layers for block in blocks] == [[], [0, 1], [2], [3, 4], [5], []]


def test_names_without_layers() -> None:
    graph = Graph("main")
    graph.output(graph.op("ABS", [graph.input("x", [1])], [1], name="multilayer.2"))
    assert [(block.title, block.operators) for block in blocks_of(graph.ir)] == [("", Counter(ABS=1))]
    assert blocks_of(Graph("empty").ir) == []


def test_the_drawing() -> None:
    drawing = draw_layers(blocks_of(layered("layers.{}", 4)), [f"in<{k}>" for k in range(20)], ["out"])
    assert drawing.count('class="layer"') == 4, "three sheets for equal layers, one for the last"
    assert drawing.count('class="arrow"') == 5
    assert "in&lt;0&gt;" in drawing
    assert "and 12 more" in drawing
    assert "layers 0 to 2, each:" in drawing
    assert draw_layers([], [], []).count("none") == 2
