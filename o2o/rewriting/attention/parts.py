"""Finding the parts of an attention block: up from its softmax to q k', down to its result.

Nothing is proven here but what an operator is and what it reads; `proof` and `visibility` do the rest.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import onnx_ir as ir

from o2o.contract import Layout
from o2o.model import attribute, shape_of
from o2o.rewriting.axes import LAYOUT_OPERATORS, RESHAPES, climb
from o2o.rewriting.matchers import (
    made_by,
    miss,
    no_activation,
    only_user,
    operand_and_factor,
    require,
)
from o2o.rewriting.rope import Rotation, match_rotation


@dataclass
class Path:
    """How a value comes from its source: layout operators between, and what it is multiplied by."""

    source: ir.Value
    layout: list[ir.Node]
    scale: float = 1.0


@dataclass
class Scores:
    """The way from q k' to the softmax: layout operators, one scale, at most one mask."""

    matmul: ir.Node
    steps: list[ir.Node] = field(default_factory=list)  # from the product down, masks' nodes included
    scale: float = 1.0
    mask: ir.Value | None = None
    masked_by: ir.Node | None = None


@dataclass
class Projection:
    """A head projection x w' (FULLY_CONNECTED without bias)."""

    node: ir.Node
    x: ir.Value
    w: ir.Value


@dataclass
class Joined:
    """Keys or values as the scores see them: the new ones, and the cache they join, if any.

    way: layout operators from the cache to where it is joined. axis: that of the tokens there. layout: of the
    cache itself. given_out: outputs of the graph that are the cache as it is written here.
    """

    node: ir.Node | None = None  # CONCATENATION or DYNAMIC_UPDATE_SLICE
    past: ir.Value | None = None
    way: list[ir.Node] = field(default_factory=list)
    axis: int = 2
    layout: Layout | None = None
    given_out: list[ir.Value] = field(default_factory=list)


def find_scores(softmax: ir.Node) -> Scores:
    """Up from the softmax to q k'."""
    value = softmax.inputs[0]
    assert value is not None
    beta = float(attribute(softmax, "beta", 1.0))
    steps: list[ir.Node] = []
    scale = 1.0
    masks: list[tuple[ir.Value, ir.Node]] = []
    while True:
        node = require(
            value,
            "the scores",
            "BATCH_MATMUL",
            "ADD",
            "MUL",
            "DIV",
            "SELECT_V2",
            "SELECT",
            *LAYOUT_OPERATORS,
        )
        if node.op_type == "BATCH_MATMUL":
            break
        steps.append(node)
        no_activation(node)
        if node.op_type in ("MUL", "DIV") and (factor := operand_and_factor(node)) is not None:
            value, number = factor
            scale *= number
            continue
        if node.op_type in ("ADD", "SELECT", "SELECT_V2"):
            if scale != 1.0 and not masks:
                miss("the scale is applied to the mask too", node.outputs[0])
            value, mask = _masked(node)
            masks.append((mask, node))
            continue
        if node.op_type in ("MUL", "DIV"):
            miss("the scores are multiplied by something that is not one constant number", node.outputs[0])
        value = node.inputs[0]
        assert value is not None
    if len(masks) > 1:
        miss("the scores have two masks", masks[0][0])
    if beta != 1 and masks:
        miss("the softmax scales the mask too", softmax.outputs[0])
    found = Scores(node, steps[::-1], scale * beta)
    if masks:
        found.mask, found.masked_by = masks[0]
    return found


def _masked(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    """(scores, mask) of the node that masks: the scores are the operand that leads to q k'."""
    if node.op_type in ("SELECT", "SELECT_V2"):
        miss("the mask selects instead of being added", node.outputs[0])
    first, second = node.inputs
    assert first is not None
    assert second is not None
    for scores, mask in ((first, second), (second, first)):
        if _leads_to_product(scores):
            if shape_of(scores) != shape_of(node.outputs[0]):
                miss("the mask is larger than the scores", mask)
            return scores, mask
    miss("no operand of the sum comes from a product of q and k", node.outputs[0])


def _leads_to_product(value: ir.Value) -> bool:
    while (node := made_by(value, "MUL", "DIV", "ADD", *LAYOUT_OPERATORS)) is not None:
        if node.op_type == "ADD":
            return any(v is not None and _leads_to_product(v) for v in node.inputs)
        factor = operand_and_factor(node) if node.op_type in ("MUL", "DIV") else None
        value = factor[0] if factor is not None else node.inputs[0]  # type: ignore[assignment]
    return made_by(value, "BATCH_MATMUL") is not None


def follow_down(value: ir.Value, what: str, until: str) -> tuple[ir.Node, list[ir.Value]]:
    """Down from `value` through layout operators to the one `until`; the values on the way."""
    way = [value]
    while True:
        node = only_user(way[-1], what)
        if node.op_type == until:
            return node, way
        if node.op_type not in LAYOUT_OPERATORS:
            miss(f"{what} should go into {until}, not {node.op_type}", way[-1])
        way.append(node.outputs[0])


def nodes_of(way: list[ir.Value]) -> list[ir.Node]:
    """The layout operators on the way that `_follow_down` went."""
    return [value.producer() for value in way[1:]]  # type: ignore[misc]


def follow_up(value: ir.Value) -> Path:
    """Up through layout operators and scales."""
    path = Path(value, [])
    while True:
        path.source, chain = climb(path.source)
        path.layout = chain + path.layout
        node = made_by(path.source, "MUL", "DIV")
        factor = operand_and_factor(node) if node is not None else None
        if node is None or factor is None:
            return path
        no_activation(node)
        path.source, number = factor
        path.scale *= number


def find_join(value: ir.Value, inner: Collection[ir.Graph]) -> tuple[Joined, ir.Value]:
    """The cache join that makes `value`, and the new keys or values that go in; none is fine."""
    node = made_by(value, "CONCATENATION", "DYNAMIC_UPDATE_SLICE")
    if node is None:
        return Joined(), value
    no_activation(node)
    past, new = node.inputs[:2]
    if len(node.inputs) != (2 if node.op_type == "CONCATENATION" else 3) or past is None or new is None:
        miss("a cache joins more than the past and the new", value)
    past, way = climb(past)
    if not past.is_graph_input():
        miss("the past of the cache is not a graph input", past)
    if past.graph in inner:
        miss("the cache belongs to a graph that an operator runs: nobody sees it written in place", past)
    for step in (past, *(node.outputs[0] for node in way)):
        only_user(step, "the cache, which ATTENTION writes in place,")
    return Joined(node, past, way), new


def find_rotated(value: ir.Value, what: str) -> tuple[Rotation | None, Projection]:
    if made_by(value, "FULLY_CONNECTED") is not None:
        return None, find_projection(value, what)
    rotation = match_rotation(value)
    source, _ = climb(rotation.x)
    return rotation, find_projection(source, what)


def find_projection(value: ir.Value, what: str) -> Projection:
    node = require(value, what, "FULLY_CONNECTED")
    no_activation(node)
    x, w, *bias = node.inputs
    if bias and bias[0] is not None:
        miss(f"the projection of {what} has a bias", bias[0])
    assert x is not None
    assert w is not None
    x = _unflattened(x)
    if len(shape_of(w)) != 2:
        miss(f"the weights of {what} are not a matrix (reshape.fc_weight.py makes them one)", w)
    if w.dtype != x.dtype or attribute(node, "weightsFormat", 0):
        miss(f"the weights of {what} are quantised or shuffled: do that after fusing", w)
    return Projection(node, x, w)


def _unflattened(x: ir.Value) -> ir.Value:
    """x before its rows were only counted differently ([1, T, D] as [T, D])."""
    source, chain = climb(x)
    plain = all(node.op_type in RESHAPES for node in chain)
    return source if plain and shape_of(source)[-1:] == shape_of(x)[-1:] else x
