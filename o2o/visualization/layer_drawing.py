"""The blocks of a graph as a drawing in SVG, from the inputs down to the outputs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from html import escape

from o2o.visualization.blocks import Block

WIDTH = 380  # pixels: fits a phone
LINE, GAP, PADDING = 18, 22, 12
CHARACTERS = 46  # in a line of a box
SHOWN = 8  # tensors that are named
SPACE = "\u00a0"  # at which no line is broken


def draw_layers(blocks: Sequence[Block], inputs: Sequence[str], outputs: Sequence[str]) -> str:
    """Draw blocks.

    Args:
        blocks: From `blocks_of`.
        inputs: The names of the graph's inputs.
        outputs: The names of its outputs.

    Returns:
        An `svg` element. Names in it are escaped.
    """
    parts: list[str] = []
    top = 2.0
    boxes = [
        ("io", _lines(_names(inputs))),
        *(_box(block) for block in blocks),
        ("io", _lines(_names(outputs))),
    ]
    for number, (kind, lines) in enumerate(boxes):
        height = len(lines) * LINE + 2 * PADDING
        if number:
            middle = WIDTH / 2
            parts.append(f'<path class="arrow" d="M{middle} {top - GAP} V{top - 7}"/>')
            parts.append(f'<path class="head" d="M{middle - 5} {top - 8} h10 l-5 7 z"/>')
        if kind == "layers":
            for offset in (8, 4):
                parts.append(_rect("layer", 2 + offset, top + offset, WIDTH - 14, height))
            parts.append(_rect("layer", 2, top, WIDTH - 14, height))
        else:
            parts.append(_rect(kind, 2, top, WIDTH - 4, height))
        for index, line in enumerate(lines):
            style = ' class="title"' if index == 0 and kind != "io" else ""
            y = top + PADDING + LINE * index + 13
            parts.append(f'<text{style} x="{PADDING + 2}" y="{y:g}">{escape(line)}</text>')
        top += height + GAP + (8 if kind == "layers" else 0)
    bottom = top - GAP + 2
    return (
        f'<svg viewBox="0 0 {WIDTH} {bottom:g}" role="img" '
        f'aria-label="The layers of the graph, from its inputs to its outputs">{"".join(parts)}</svg>'
    )


def _rect(kind: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="7"/>'


def _box(block: Block) -> tuple[str, list[str]]:
    """The kind of a box, and its lines: title, operators, bytes of weights."""
    count = len(block.layers)
    title = f"{block.title}, each:" if count > 1 else block.title or "operators"
    operators = ", ".join(f"{name}{SPACE}{number}" for name, number in block.operators.most_common())
    lines = [title, *_lines(operators)]
    if block.weights:
        lines.append(f"{block.weights:,} bytes of constants")
    return "layers" if count > 1 else "layer" if block.layers else "plain", lines


def _names(names: Sequence[str]) -> str:
    rest = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest or "none"


def _lines(text: str) -> list[str]:
    return textwrap.wrap(text, CHARACTERS, break_long_words=True) or [""]
