"""Layers of a graph: consecutive operators that belong together, by the layer's number in tensor names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from o2o.formats.tensors import is_constant

_LAYER = re.compile(r"(?:^|[./_])(?:layers?|blocks?|h)[./_](\d+)(?=[./_]|$)")
"""The number of a layer in the names of exporters: `model.layers.3.mlp`, `transformer.h.3.attn`."""


@dataclass
class Block:
    """Consecutive operators of a graph.

    Attributes:
        layers: The numbers of the layers that look like this one; empty outside layers.
        operators: How many operators of each kind one of them has.
        weights: Bytes of the constants that one of them reads.
    """

    layers: list[int]
    operators: Counter[str] = field(default_factory=Counter)
    weights: int = 0

    @property
    def title(self) -> str:
        """What the block is called."""
        if not self.layers:
            return ""
        if len(self.layers) == 1:
            return f"layer {self.layers[0]}"
        return f"layers {self.layers[0]} to {self.layers[-1]}"


def blocks_of(graph: ir.Graph) -> list[Block]:
    """Divide a graph into blocks.

    Args:
        graph: A graph.

    Returns:
        Its blocks in order. Equal layers that follow each other are one block. A graph whose names have no
        layers is one block.
    """
    blocks: list[Block] = []
    read: set[int] = set()
    last = max((k for k, node in enumerate(graph) if _layer(node) is not None), default=-1)
    current: int | None = None
    for index, node in enumerate(graph):
        number = _layer(node)
        current = None if index > last else current if number is None else number
        layers = [] if current is None else [current]
        if not blocks or blocks[-1].layers != layers:
            blocks.append(Block(layers))
            read = set()
        block = blocks[-1]
        block.operators[node.op_type] += 1
        for value in node.inputs:
            if value is not None and is_constant(value) and id(value) not in read:
                read.add(id(value))
                block.weights += value.const_value.nbytes  # type: ignore[union-attr]
    return _merged(blocks)


def _merged(blocks: list[Block]) -> list[Block]:
    """Blocks in which equal neighbours are one."""
    merged: list[Block] = []
    for block in blocks:
        previous = merged[-1] if merged else None
        if (
            previous is not None
            and block.layers
            and previous.layers
            and block.layers[0] == previous.layers[-1] + 1
            and (block.operators, block.weights) == (previous.operators, previous.weights)
        ):
            previous.layers += block.layers
        else:
            merged.append(block)
    return merged


def _layer(node: ir.Node) -> int | None:
    """The number of a node's layer, by its first result or its constants."""
    for name in _names(node):
        if (match := _LAYER.search(name)) is not None:
            return int(match[1])
    return None


def _names(node: ir.Node) -> Iterator[str]:
    yield from (value.name or "" for value in node.outputs)
    yield from (value.name or "" for value in node.inputs if value is not None and is_constant(value))
