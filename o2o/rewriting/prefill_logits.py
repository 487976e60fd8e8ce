"""Restoring the logits of a prefill: the operators after its last KV cache, which decode still has.

A prefill without logits ends at the keys and values of the last layer. What is missing is the rest of that
layer, the final norm and the LM head. Decode has them for one token, so its shapes do not fit. But the layer
before the last one is complete in both. So the last layer of the prefill is built like the layer before it,
with the weights that decode has at these places:

    prefill   h[L-2] -- layer L-2 -- h[L-1] -- K, V of layer L-1
                            |           `----- layer L-1, built like layer L-2 ------ h[L]
    decode    h[L-2] -- layer L-2 -- h[L-1] -- layer L-1 -- h[L] -- norm -- LM head -- logits
                         weights <- aligned -> weights        `------ built like decode ----'

Two values are aligned if the same operators compute them from aligned values. The keys and values of two
layers are. Where their alignment stops, the hidden states h begin. Its users compare the result with decode.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import onnx_ir as ir

from o2o.contract import Role, role_of
from o2o.formats.tensors import is_constant, storage_key
from o2o.model import DOMAIN, Model, Signature, attribute, inner_graphs, quantization_constants, shape_of
from o2o.operators.traits import RESHAPE_OPS, is_elementwise
from o2o.rewriting.builder import Builder, fresh_name
from o2o.rewriting.dead_code_elimination import remove_dead_constants, remove_dead_nodes
from o2o.rewriting.matchers import MatchFailure, fail
from o2o.signatures import find_decode, prefills_of

_REDUCTIONS = ("MEAN", "SUM", "RMS_NORM")
Pairs = Mapping[ir.Value, ir.Value]
"""Aligned values: for each of a later layer the one of the layer before it."""


def restore_prefill_logits(model: Model) -> bool:
    """Give prefills that have no logits the logits [1, T, V] of each token, in place.

    Args:
        model: A TFLite model with roles attached (`o2o.contract`).

    Returns:
        Whether a prefill was changed. Those of another structure stay as they are.
    """
    decode = find_decode(model)
    prefills = [prefill for prefill in prefills_of(model) if _logits(prefill) is None]
    restored = False
    try:
        last_layer = _DecodeTail(decode) if decode is not None and prefills else None
    except MatchFailure:
        return False
    for prefill in prefills if last_layer is not None else ():
        assert last_layer is not None
        try:
            logits = _restore(prefill, last_layer)
        except MatchFailure:
            remove_dead_nodes(prefill.graph)  # of the attempt
            remove_dead_constants(prefill.graph)
            continue
        logits.meta["role"] = Role("logits")
        prefill.graph.outputs.append(logits)
        prefill.outputs["logits"] = logits
        restored = True
    return restored


class _DecodeTail:
    """The last layer and the LM head of decode.

    Attributes:
        logits: Its logits.
        hidden: h[L], the result of the last layer.
        weights: For each constant of layer L-2 the one of layer L-1, by the storage of the former.
    """

    def __init__(self, decode: Signature) -> None:
        logits = _logits(decode)
        if logits is None:
            fail("decode gives no logits")
        self.logits = logits
        states, _ = _hidden_states(decode)
        before, last = states[-2:]
        self.hidden, pairs = _next_state(decode.graph, before, last)
        self.weights: dict[Hashable, ir.Value] = {}
        for later, earlier in pairs.items():
            if is_constant(later) and is_constant(earlier):
                known = self.weights.setdefault(_storage(earlier), later)
                if _storage(known) != _storage(later):
                    fail("two constants of the last layer have one counterpart", later)


def _restore(prefill: Signature, tail: _DecodeTail) -> ir.Value:
    """Build the logits of a prefill, which are no output yet. MatchFailure if that is not possible."""
    graph = prefill.graph
    states, pairs = _hidden_states(prefill)
    last_layer = {earlier: later for later, earlier in pairs.items()}
    inside = _descendants(graph, [states[-2], *_caches(graph)])
    copy = _Copy(graph, last_layer)

    def next_layer(value: ir.Value) -> ir.Value:
        """The value of layer L-1 for one of layer L-2."""
        if is_constant(value):
            if (later := tail.weights.get(_storage(value))) is not None:
                return copy.constant(later)
            if value.dtype not in (ir.DataType.INT32, ir.DataType.INT64):
                fail("decode has no such weight", value)
            return value  # a shape or an axis, with T in it
        if value not in inside:
            return value  # the mask, the rotary embedding: equal for all layers
        if value.producer() is None:
            fail("a cache of the layer before is read where the last layer has none", value)
        return copy.result(value, next_layer, shape_of(value))

    hidden = copy.lookup(states[-1], next_layer)
    if shape_of(hidden) != shape_of(states[-1]):
        fail("the last layer has another shape", hidden)
    return _head(graph, tail, hidden)


def _head(graph: ir.Graph, tail: _DecodeTail, hidden: ir.Value) -> ir.Value:
    """Build what decode computes from its last hidden state, for `hidden` of T tokens."""
    axes = [
        i
        for i, (one, many) in enumerate(zip(shape_of(tail.hidden), shape_of(hidden), strict=True))
        if one != many
    ]
    if len(axes) != 1 or shape_of(tail.hidden)[axes[0]] != 1:
        fail("a hidden state does not differ in the number of tokens alone", hidden)
    tokens = shape_of(hidden)[axes[0]]
    token_axis = {tail.hidden: axes[0]}
    copy = _Copy(graph, {tail.hidden: hidden})

    def for_tokens(value: ir.Value) -> ir.Value:
        if is_constant(value):
            return copy.constant(value)
        node = value.producer()
        if node is None:
            fail("the LM head reads an input", value)
        operands = [operand for operand in node.inputs if operand is not None and not is_constant(operand)]
        for operand in operands:
            copy.lookup(operand, for_tokens)
        axis = token_axis[value] = _axis_after(node, operands, token_axis)
        shape = [tokens if index == axis else size for index, size in enumerate(shape_of(value))]
        if node.op_type in RESHAPE_OPS:
            return Builder(graph).reshape(copy.lookup(operands[0], for_tokens), shape, value.name)
        return copy.result(value, for_tokens, shape)

    logits = copy.lookup(tail.logits, for_tokens)
    return Builder(graph).reshape(logits, [1, tokens, shape_of(logits)[-1]], "logits")


def _axis_after(node: ir.Node, operands: list[ir.Value], token_axis: dict[ir.Value, int]) -> int:
    """The axis of the tokens in the result of `node`. MatchFailure if it is not known."""
    output = node.outputs[0]
    rank = len(shape_of(output))
    if len(node.outputs) != 1 or not operands or node.domain != DOMAIN or next(inner_graphs(node), None):
        fail(f"{node.op_type} is unknown in an LM head", output)
    behind = {len(shape_of(operand)) - token_axis[operand] for operand in operands}
    if node.op_type == "FULLY_CONNECTED" and len(operands) == 1:
        return token_axis[operands[0]] if attribute(node, "keepNumDims", 0) else 0
    if node.op_type in RESHAPE_OPS and rank >= 2:
        return rank - 2
    same_rank = all(len(shape_of(operand)) == rank for operand in operands)
    if len(behind) == 1 and same_rank and (is_elementwise(node) or node.op_type in _REDUCTIONS):
        return rank - behind.pop()
    fail(f"{node.op_type} is unknown in an LM head", output)


class _Copy:
    """Copies of nodes and constants in a graph, each made once."""

    def __init__(self, graph: ir.Graph, known: Mapping[ir.Value, ir.Value]) -> None:
        self.graph = graph
        self.copies = dict(known)
        self.by_storage = {
            _storage(value): value for value in graph.initializers.values() if is_constant(value)
        }

    def lookup(self, value: ir.Value, make: Callable[[ir.Value], ir.Value]) -> ir.Value:
        """The copy of `value`, made by `make` the first time."""
        if value not in self.copies:
            self.copies[value] = make(value)
        return self.copies[value]

    def result(self, value: ir.Value, make: Callable[[ir.Value], ir.Value], shape: Sequence[int]) -> ir.Value:
        """A copy of the node of `value` on copies of its operands; `value` has this shape in it."""
        node = value.producer()
        assert node is not None
        if next(inner_graphs(node), None) is not None or node.meta.get("intermediates"):
            fail(f"{node.op_type} runs a graph of its own", value)
        inputs = [None if operand is None else self.lookup(operand, make) for operand in node.inputs]
        outputs = []
        for output in node.outputs:
            copied = self._like(output)
            copied.shape = ir.Shape(shape if output is value else shape_of(output))
            outputs.append(copied)
            self.copies[output] = copied
        copied_node = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            list(node.attributes.values()),
            outputs=outputs,
            version=node.version,
        )
        copied_node.meta.update(node.meta)
        self.graph.append(copied_node)
        return self.copies[value]

    def constant(self, value: ir.Value) -> ir.Value:
        """A constant of this graph over the bytes of one of another graph."""
        key = _storage(value)
        if key not in self.by_storage:
            copied = self._like(value)
            copied.const_value = value.const_value
            self.graph.register_initializer(copied)
            if scales := quantization_constants(value):
                copied.meta["quantization_constants"] = {
                    name: self.constant(one) for name, one in scales.items()
                }
            self.by_storage[key] = copied
        return self.by_storage[key]

    def _like(self, value: ir.Value) -> ir.Value:
        copied = ir.Value(
            name=fresh_name(self.graph, value.name or "value"), shape=value.shape, type=value.type
        )
        if (fields := value.meta.get("fields")) is not None:
            copied.meta["fields"] = fields
        return copied


def _hidden_states(signature: Signature) -> tuple[list[ir.Value], Pairs]:
    """The hidden states h[0] to h[L-1] that enter the layers, and the aligned values of layers L-1 and L-2.

    MatchFailure for fewer than two layers, or layers of different structure.
    """
    rows = {
        (role.kind, role.layer): value
        for value in signature.graph.outputs
        if (role := role_of(value)) is not None and role.is_rows and role.layer is not None
    }
    last = max((layer for _, layer in rows), default=0)
    if last < 1 or any((kind, layer) not in rows for kind in ("key", "value") for layer in (last, last - 1)):
        fail("there are no two layers with keys and values")
    pairs, unaligned = align([(rows[kind, last], rows[kind, last - 1]) for kind in ("key", "value")])
    if len(unaligned) != 1:
        fail("the last two layers differ")
    ((second, first),) = unaligned
    following = {earlier: later for later, earlier in pairs.items()}
    states = [first, second]
    while (state := following.get(states[-1])) is not None:
        states.append(state)
    if len(states) != last + 1:
        fail("the layers differ")
    return states, pairs


def _next_state(graph: ir.Graph, before: ir.Value, last: ir.Value) -> tuple[ir.Value, Pairs]:
    """h[L] of decode, and the values of its last layer aligned with those of the layer before it.

    before, last: h[L-2] and h[L-1].
    """
    producer = last.producer()
    assert producer is not None
    inside = _descendants(graph, [last])
    for node in graph:
        for value in node.outputs:
            if value in inside and value is not last and node.op_type == producer.op_type:
                pairs, unaligned = align([(value, last)], stop=(last, before))
                if not unaligned and pairs.get(last) is before:
                    return value, pairs
    fail("decode has no layer after its last cache")


def align(
    start: Iterable[tuple[ir.Value, ir.Value]], stop: tuple[ir.Value, ir.Value] | None = None
) -> tuple[Pairs, list[tuple[ir.Value, ir.Value]]]:
    """Align two values, and those that they are computed from.

    Args:
        start: Pairs of a value and its counterpart.
        stop: A pair whose operands are not aligned.

    Returns:
        The aligned pairs, and pairs that are computed in different ways.
    """
    pairs: dict[ir.Value, ir.Value] = {}
    unaligned: dict[tuple[ir.Value, ir.Value], None] = {}
    pending = [*start]
    while pending:
        value, other = pending.pop()
        if value in pairs:
            if pairs[value] is not other:
                unaligned[value, other] = None
            continue
        one, two = value.producer(), other.producer()
        if value is other or (value, other) == stop or _same_place(value, other):
            pairs[value] = other
        elif one is None or two is None or not _same_operator(one, two, value, other):
            unaligned[value, other] = None
        else:
            pairs |= dict(zip(one.outputs, two.outputs, strict=True))
            pending += [
                (a, b) for a, b in zip(one.inputs, two.inputs, strict=True) if a is not None and b is not None
            ]
    return pairs, [*unaligned]


def _same_place(value: ir.Value, other: ir.Value) -> bool:
    """Whether both are constants of one form, or caches of one kind."""
    if (value.dtype, shape_of(value)) != (other.dtype, shape_of(other)):
        return False
    if is_constant(value) and is_constant(other):
        return True
    roles = role_of(value), role_of(other)
    return (
        all(one is not None and one.is_cache for one in roles)
        and value.is_graph_input()
        and other.is_graph_input()
        and roles[0].kind == roles[1].kind  # type: ignore[union-attr]
    )


def _same_operator(one: ir.Node, two: ir.Node, value: ir.Value, other: ir.Value) -> bool:
    def form(node: ir.Node, output: ir.Value) -> tuple[object, ...]:
        attributes = {name: item.value for name, item in node.attributes.items()}
        operands = [operand is None for operand in node.inputs]
        return node.domain, node.op_type, attributes, operands, [*node.outputs].index(output)

    return form(one, value) == form(two, other)


def _descendants(graph: ir.Graph, values: Iterable[ir.Value]) -> set[ir.Value]:
    """These values, and all that are computed from them."""
    inside = set(values)
    for node in graph:
        if any(operand in inside for operand in node.inputs):
            inside.update(node.outputs)
    return inside


def _caches(graph: ir.Graph) -> list[ir.Value]:
    return [value for value in graph.inputs if (role := role_of(value)) is not None and role.is_cache]


def _logits(signature: Signature) -> ir.Value | None:
    roles = ((value, role_of(value)) for value in signature.graph.outputs)
    return next((value for value, role in roles if role is not None and role.kind == "logits"), None)


def _storage(value: ir.Value) -> Hashable:
    assert value.const_value is not None
    return storage_key(value.const_value)
