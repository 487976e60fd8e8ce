"""Another number of tokens: a graph that reads T0 tokens, rewritten to read T.

The token axis is followed from the token ids through the graph (`o2o.rewriting.axis_following`). Shapes
change, and so do operands that are shapes, and constants with one row for each token. The results of a token
must not depend on how many tokens follow it. Most operators compute each token alone. Attention is proven to
be causal: a query sees no key of a later token, and no cache row that one would have written. So
row t of T tokens is row t of T0 tokens, for each t below both. For more tokens than T0, constants must
continue: they grow in equal steps, or are equal for all tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from o2o.contract import role_of
from o2o.errors import ModelError
from o2o.formats.tensors import constant_array, is_constant
from o2o.model import Model, Signature, attribute, is_dynamic, shape_of
from o2o.operators.attention import Attention, is_attention
from o2o.operators.core_attention import CoreAttention, is_core_attention
from o2o.operators.masks import HIDDEN_THRESHOLD
from o2o.operators.reference import NotEvaluable, evaluate, is_pure, producers
from o2o.operators.shape_inference import Mismatch, infer_shapes
from o2o.operators.traits import RESHAPE_OPS
from o2o.rewriting.attention.causality import (
    BUDGET,
    AtPosition,
    Keys,
    position_leaf,
    prove_position,
    prove_start,
)
from o2o.rewriting.axis_following import Factor, Followed, follow
from o2o.rewriting.builder import Builder
from o2o.rewriting.graph_copies import copied
from o2o.rewriting.matchers import fail, producer_of

SHAPE_OPERANDS = {"RESHAPE": 1, "BROADCAST_TO": 1, "FILL": 0, "SLICE": 2, "STRIDED_SLICE": 2, "TILE": 1}
"""{operator: its operand with sizes of the result}"""
_MASKING = ("ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "SELECT", "SELECT_V2", "TRANSPOSE", "CAST")
MASKING_OPS = (*_MASKING, *RESHAPE_OPS)
"""Operators between scores and their softmax, through which a mask hides scores."""


def tokens_of(signature: Signature) -> int:
    """Return the number of tokens that a signature reads.

    Args:
        signature: A signature with roles attached to its values.

    Returns:
        T; 0 without token ids of a fixed shape.
    """
    ids = [value for value in signature.inputs.values() if (role := role_of(value)) and role.kind == "tokens"]
    return math.prod(shape_of(ids[0])) if len(ids) == 1 and not is_dynamic(ids[0]) else 0


class TokenResizer:
    """Makes signatures for other numbers of tokens of one signature. What can be proven once is.

    Attributes:
        tokens: T0.
    """

    def __init__(self, signature: Signature) -> None:
        """Take a signature.

        Args:
            signature: It reads 2 tokens or more. Its roles are attached.

        Raises:
            MatchFailure: It reads one token, or no token ids.
        """
        self.signature = signature
        self.tokens = tokens_of(signature)
        if self.tokens < 2:
            fail(f"{signature.name} reads {self.tokens or 'no'} token: the token axis is followed from 2 on")
        self._followed: dict[int, Followed] = {}
        self._is_causal = False

    def add(self, model: Model, tokens: int, name: str) -> Signature:
        """Add a signature that reads another number of tokens, over the same weights.

        Args:
            model: Gets the new graph and signature.
            tokens: T.
            name: The name of the signature.

        Returns:
            The signature.

        Raises:
            MatchFailure: The result is not proven to compute the same for each token.
        """
        followed = self._follow(min(tokens, self.tokens))
        if not self._is_causal:
            prove_causal_tokens(followed)
            self._is_causal = True
        graph, copies = _resized(self.signature.graph, followed, tokens)
        inputs, outputs = (
            {key: copies[value] for key, value in values.items()}
            for values in (self.signature.inputs, self.signature.outputs)
        )
        graph.name = name
        resized = Signature(name, graph, inputs, outputs)
        if tokens > self.tokens:
            _refuse_growing(followed)
            prove_causal_tokens(_follow(resized, tokens))
        model.graphs.append(graph)
        model.signatures.append(resized)
        return resized

    def _follow(self, least: int) -> Followed:
        if least not in self._followed:
            self._followed[least] = _follow(self.signature, least)
        return self._followed[least]


def _follow(signature: Signature, least: int) -> Followed:
    """Follow the token axis. MatchFailure where it cannot be followed."""
    tokens = tokens_of(signature)
    seeds = []
    for value in signature.graph.inputs:
        role = role_of(value)
        if role is not None and role.kind == "tokens":
            seeds.append((value, Factor(shape_of(value).index(tokens))))
    followed = follow(seeds, tokens, least)
    for value in followed.values:
        role = role_of(value)
        if role is not None and role.is_cache:
            fail("a KV cache has one row for each token of a run", value)
    return followed


def prove_causal_tokens(tokens: Followed) -> None:
    """Prove that no query sees keys of later tokens, at any position.

    Args:
        tokens: The token axis of a graph.

    Raises:
        MatchFailure: There is no proof.
    """
    graph = next(iter(tokens.values)).graph
    assert isinstance(graph, ir.Graph)
    by_position = _by_position(graph)
    _Proof(tokens, tokens, Keys(tokens.size, 0, True), None, by_position).run()
    by_rows: dict[int, list[tuple[ir.Node, int]]] = {}
    for node, axis in tokens.writes:
        by_rows.setdefault(shape_of(node.outputs[0])[axis], []).append((node, axis))
    for rows, writes in by_rows.items():
        keys = Keys(tokens.size, rows, False)
        starts = dict.fromkeys((node.inputs[2], axis) for node, axis in writes)
        leaves = {prove_start(start, keys, axis) for start, axis in starts if start is not None}
        if len(leaves) != 1:
            fail("caches are written at different positions", writes[0][0].outputs[0])
        caches = follow([(node.outputs[0], Factor(axis)) for node, axis in writes], rows, back=False)
        for value in (value for value in caches.values if value.is_graph_output()):
            role = role_of(value)
            if role is None or not role.is_rows:
                fail("an output that is not a cache has cache rows", value)
        _Proof(tokens, caches, keys, leaves.pop(), by_position).run()


@dataclass
class _Proof:
    """The proof that hidden keys have no weight.

    Attributes:
        tokens: The token axis.
        rows: The axis of the keys, which are rows of caches, or the tokens themselves.
        keys: How many there are.
        leaf: The position at which the new rows are written; None without caches.
        by_position: Values that are computed from positions and constants alone.
        proven: Masks and positions with a proof.
    """

    tokens: Followed
    rows: Followed
    keys: Keys
    leaf: ir.Value | None
    by_position: set[ir.Value]
    proven: set[ir.Value] = field(default_factory=set)

    def run(self) -> None:
        """Prove it for each operator that mixes keys. MatchFailure if there is no proof."""
        for node in self.rows.reductions:
            if is_core_attention(node):
                of = CoreAttention.of(node)
                if of.mask is not None:
                    self._prove_hidden(of.mask, is_mask=True)
                else:
                    self._prove_position(of.position)
            elif is_attention(node):
                if (mask := Attention.of(node).mask) is not None:
                    self._prove_hidden(mask, is_mask=True)
            elif node.op_type == "SOFTMAX":
                assert node.inputs[0] is not None
                self._prove_hidden(node.inputs[0])
            else:
                factors = [x for x in node.inputs[:2] if x is not None]
                weights = [x for x in factors if x in self.by_position]
                if weights:
                    self._prove_hidden(weights[0], limit=0.0)
                elif not any(producer_of(_before_layout(x), "SOFTMAX") for x in factors):
                    fail(f"{node.op_type} sums over the keys without softmax weights", node.outputs[0])

    def _prove_position(self, position: ir.Value) -> None:
        """MatchFailure unless the first query has the position of the first row that is written."""
        if position in self.proven:
            return
        numbers = constant_array(position)
        is_zero = self.keys.appended and numbers is not None and not numbers.any()
        if not is_zero and prove_position(position, self.keys) is not self.leaf:
            fail("the queries have another position than the rows that are written", position)
        self.proven.add(position)

    def _prove_hidden(self, scores: ir.Value, is_mask: bool = False, limit: float = HIDDEN_THRESHOLD) -> None:
        """MatchFailure unless scores of later tokens are hidden at every position, whatever they are.

        is_mask: Whether `scores` is a mask, which is added to scores.
        limit: The largest number that hides a key. 0 for weights instead of scores.
        """
        role = role_of(scores)
        if scores in self.proven or (role is not None and role.kind == "mask" and scores.is_graph_input()):
            return  # the caller of an input `mask` makes its rows for each query
        masks, unmasked = ({scores}, set()) if is_mask else self._parts(scores)
        if not self.keys.appended and any(map(is_constant, masks)):
            fail("a mask is the same at every position", scores)
        add = producer_of(_before_layout(scores), "ADD")
        added = [value for value in add.inputs if value in masks] if add is not None else []
        for mask in added if not is_mask else ():
            if mask is not None and self._rows(mask) is not None:
                self._prove_hidden(mask, is_mask=True)
                self.proven.add(scores)
                return
        leaves = {leaf for mask in masks if (leaf := position_leaf(mask, "the mask")) is not None}
        if not masks or leaves - {self.leaf}:
            fail("no mask of the position is applied to scores", scores)
        leaf = leaves.pop() if leaves else None
        rows = self._rows(scores)
        if rows is None:
            fail("the mask has no row for each token", scores)
        for position in self._positions(scores, masks, leaf):
            numbers = _evaluated(scores, leaf, position, unmasked).reshape(rows)
            later = np.arange(self.keys.S) > position + np.arange(self.keys.T)[:, None]
            highest = (numbers if limit < 0 else np.abs(numbers)).max((0, 2))
            if not (highest[later] <= limit).all():
                fail(f"keys of later tokens are visible at position {position}", scores)
        self.proven.add(scores)

    def _parts(self, scores: ir.Value) -> tuple[set[ir.Value], set[ir.Value]]:
        """The masks that are applied to scores, and the scores before."""
        masks, unmasked, pending = set[ir.Value](), set[ir.Value](), [scores]
        while pending:
            value = pending.pop()
            if value in masks or value in unmasked:
                continue
            if is_constant(value):
                masks |= {value} if self._rows(value) is not None else set()
            elif value in self.by_position:
                masks.add(value)
            elif (node := producer_of(value, *MASKING_OPS)) is not None:
                pending += [operand for operand in node.inputs if operand is not None]
            else:
                unmasked.add(value)
        return masks, unmasked

    def _rows(self, mask: ir.Value) -> tuple[int, int, int, int] | None:
        """The shape of a mask as (.., T, .., S); None if it has not one row for each token."""
        factors = self.tokens.values.get(mask) or {
            factor
            for (node, operand), some in self.tokens.constants.items()
            if node.inputs[operand] is mask
            for factor in some
        }
        shape = shape_of(mask)
        queries = [factor for factor in factors if factor.axis < len(shape) - 1]
        if len(queries) != 1 or not shape or shape[-1] != self.keys.S:
            return None
        return math.prod(shape[: queries[0].axis]) * queries[0].outer, self.keys.T, -1, self.keys.S

    def _positions(self, scores: ir.Value, masks: set[ir.Value], leaf: ir.Value | None) -> Sequence[int]:
        """Positions of the first token that show the masks of each token at each position."""
        every = self.keys.positions
        if leaf is None:
            return every
        few = sorted({*every[:: self.keys.T], every[-1]})
        positions = few if all(self._is_by_token(mask, leaf, every) for mask in masks) else every
        if len(positions) * math.prod(shape_of(scores)) > BUDGET:
            fail(f"the mask is too large for a proof at {len(positions)} positions", scores)
        return positions

    def _is_by_token(self, mask: ir.Value, leaf: ir.Value, positions: Sequence[int]) -> bool:
        """Whether each row of a mask depends on the position of its token alone."""
        dependent = {leaf}
        by_token = {leaf} if self._counts(leaf, leaf, positions) else set()
        for node in producers(mask):
            used = [x for x in node.inputs if x is not None and x in dependent]
            if not used:
                continue
            dependent |= set(node.outputs)
            has_table = any((node, operand) in self.tokens.constants for operand in range(len(node.inputs)))
            is_carried = is_pure(node) and not has_table and all(x in by_token for x in used)
            for value in node.outputs:
                if is_carried or self._counts(value, leaf, positions):
                    by_token.add(value)
        return mask in by_token

    def _counts(self, value: ir.Value, leaf: ir.Value, positions: Sequence[int]) -> bool:
        """Whether the numbers of a value grow in equal steps, for each token as for each position."""
        factors = self.tokens.values.get(value, set())
        size = math.prod(shape_of(value)) * len(positions)
        if len(factors) != 1 or len(positions) < 2 or size > BUDGET:
            return False
        ((axis, outer),) = ((factor.axis, factor.outer) for factor in factors)
        shape = math.prod(shape_of(value)[:axis]) * outer, self.keys.T, -1
        value_at = AtPosition(value, leaf, "a position")
        first, second = (value_at(position).reshape(shape)[:, :1].astype(np.float64) for position in (0, 1))
        steps = np.arange(self.keys.T)[:, None]
        return all(
            np.array_equal(value_at(p).reshape(shape), first + (steps + p) * (second - first))
            for p in positions
        )


def _by_position(graph: ir.Graph) -> set[ir.Value]:
    """The values that are computed from positions and constants alone."""
    values = {
        value
        for value in graph.inputs
        if (role := role_of(value)) is not None and role.kind in ("position", "window_row")
    }
    for node in graph:
        if all(value is None or value in values or is_constant(value) for value in node.inputs):
            values |= set(node.outputs)
    return values


def _evaluated(
    value: ir.Value, leaf: ir.Value | None, position: int, zeros: Iterable[ir.Value]
) -> np.ndarray:
    """A value at a position of the first token, with zeros in place of some others."""
    known = {zero: np.zeros(shape_of(zero), np.float32) for zero in zeros}
    if leaf is not None:
        assert leaf.dtype is not None
        steps = position + np.arange(math.prod(shape_of(leaf)))
        known[leaf] = steps.reshape(shape_of(leaf)).astype(leaf.dtype.numpy())
    try:
        return evaluate(value, known)
    except NotEvaluable as reason:
        fail(f"the mask cannot be computed: {reason}", value)


def _before_layout(value: ir.Value) -> ir.Value:
    """A value before transposes, reshapes and casts."""
    ops = ("TRANSPOSE", "CAST", *RESHAPE_OPS)
    while (node := producer_of(value, *ops)) is not None and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


def _refuse_growing(followed: Followed) -> None:
    """MatchFailure where a graph of T0 tokens does not show what more tokens would compute."""
    if followed.reductions:
        fail("a graph without KV caches does not show what its tokens see beyond them")
    for node, _ in followed.writes:
        role = role_of(node.outputs[0])
        if role is not None and role.capacity is not None:
            fail("a window cache has rows for as many tokens as before", node.outputs[0])


def _resized(
    graph: ir.Graph, followed: Followed, tokens: int
) -> tuple[ir.Graph, Mapping[ir.Value, ir.Value]]:
    """A copy of a graph with T tokens in place of T0."""
    copy, copies = copied(graph)
    changed = {copies[value]: factors for value, factors in followed.values.items()}
    for value, factors in changed.items():
        value.shape = ir.Shape(followed.resized(shape_of(value), factors, tokens))
    _resize_positions(copy, followed.size, tokens)
    twins = dict(zip(graph, copy, strict=True))
    constants: dict[tuple[ir.Value, frozenset[Factor]], list[tuple[ir.Node, int]]] = {}
    for (node, operand), factors in followed.constants.items():
        constant = twins[node].inputs[operand]
        assert constant is not None
        constants.setdefault((constant, frozenset(factors)), []).append((twins[node], operand))
    for (constant, at), uses in constants.items():
        _replace(constant, _resized_constant(constant, at, followed.size, tokens), uses)
    for node in copy:
        if node.outputs[0] in changed:
            _rewrite_sizes(node, changed[node.outputs[0]])
    for node in copy:
        _check_shapes(node)
    return copy, copies


def _resize_positions(graph: ir.Graph, size: int, tokens: int) -> None:
    """Give T positions to an input of T0 positions of which only the first is read."""
    for value in graph.inputs:
        role = role_of(value)
        if role is None or role.kind != "position" or shape_of(value) != (size,):
            continue
        for node in (use.node for use in value.uses()):
            bounds = [constant_array(bound) for bound in node.inputs[1:]]
            if node.op_type != "SLICE" or [b.tolist() for b in bounds if b is not None] != [[0], [1]]:
                fail(f"{node.op_type} reads positions of other tokens than the first", value)
        value.shape = ir.Shape([tokens])


def _replace(constant: ir.Value, array: np.ndarray, uses: Sequence[tuple[ir.Node, int]]) -> None:
    """Give some uses of a constant other numbers. It keeps its name if these are all uses."""
    if len(constant.uses()) == len(uses) and not constant.is_graph_output():
        constant.const_value = ir.Tensor(array, name=constant.name)
        constant.shape = ir.Shape(array.shape)
        return
    node = uses[0][0]
    assert node.graph is not None
    new = Builder(node.graph, before=node).constant(array, constant.name or "constant")
    for user, operand in uses:
        user.replace_input_with(operand, new)
    if not constant.uses() and constant.name is not None:
        node.graph.initializers.pop(constant.name, None)


def _resized_constant(constant: ir.Value, factors: Iterable[Factor], size: int, tokens: int) -> np.ndarray:
    """The numbers of a constant for T tokens. MatchFailure if they do not continue."""
    try:
        array = constant_array(constant)
    except ModelError:
        array = None
    if array is None:
        fail("a weight has one row for each token", constant)
    for axis, outer in sorted({(factor.axis, factor.outer) for factor in factors}, reverse=True):
        shape = array.shape
        parts = np.moveaxis(array.reshape(*shape[:axis], outer, size, -1, *shape[axis + 1 :]), axis + 1, 0)
        if tokens > size:
            step = parts[1] - parts[0] if parts.dtype != bool else np.zeros_like(parts[0])
            counted = np.arange(max(tokens, size)).reshape(-1, *[1] * (parts.ndim - 1))
            longer = parts[:1] + (counted * step).astype(parts.dtype) if step.any() else None
            longer = np.broadcast_to(parts[:1], (tokens, *parts.shape[1:])) if longer is None else longer
            if not np.array_equal(longer[:size], parts):
                fail("its rows do not continue for more tokens", constant)
            parts = longer
        parts = np.moveaxis(parts[:tokens], 0, axis + 1)
        array = np.ascontiguousarray(parts.reshape(*shape[:axis], -1, *shape[axis + 1 :]))
    return array


def _rewrite_sizes(node: ir.Node, factors: Iterable[Factor]) -> None:
    """Write the sizes of a result into the operand of its node that holds them."""
    output, operand = node.outputs[0], SHAPE_OPERANDS.get(node.op_type)
    axes = {factor.axis for factor in factors}
    shape = shape_of(output)
    if operand is not None and operand < len(node.inputs) and (old := node.inputs[operand]) is not None:
        numbers = constant_array(old)
        if numbers is None:
            fail("a shape is computed", old)
        sizes = [int(number) for number in numbers.reshape(-1)]
        x = node.inputs[0]
        assert x is not None
        for axis in axes:
            place = axis
            if node.op_type == "STRIDED_SLICE":
                shrunk = attribute(node, "shrinkAxisMask", 0)
                place = [axis for axis in range(len(shape_of(x))) if not shrunk >> axis & 1][axis]
                first = constant_array(node.inputs[1])
                assert first is not None
                begin = 0 if attribute(node, "beginMask", 0) >> place & 1 else int(first[place])
                sizes[place] = shape[axis] + (0 if attribute(node, "offset", 0) else begin)
            elif node.op_type == "TILE":
                place += len(sizes) - len(shape)
                sizes[place] = shape[axis] // shape_of(x)[axis]
            elif sizes[place] != -1:
                sizes[place] = shape[axis]
        new = np.asarray(sizes, numbers.dtype).reshape(numbers.shape)
        _replace(old, new, [(node, operand)])
    if node.op_type == "RANGE":
        start, _, delta = (constant_array(value) for value in node.inputs)
        assert start is not None
        assert delta is not None
        assert node.inputs[1] is not None
        _replace(node.inputs[1], np.asarray(start + shape[0] * delta, start.dtype), [(node, 1)])
    if node.op_type == "RESHAPE" and attribute(node, "newShape") is not None:
        node.attributes["newShape"] = ir.AttrInt64s("newShape", list(shape))


def _check_shapes(node: ir.Node) -> None:
    """MatchFailure unless the shapes of a node's results follow from its operands."""
    try:
        inferred = infer_shapes(node)
    except Mismatch as error:
        fail(f"the shapes of {node.op_type} do not fit: {error}", node.outputs[0])
    for value, shape in zip(node.outputs, inferred or (), strict=False):
        if shape is not None and value.shape is not None and shape != shape_of(value):
            fail(f"{node.op_type} computes the shape {list(shape)}", value)
