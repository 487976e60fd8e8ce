"""Matching of two graphs: which operators and tensors correspond, by structure and by names.

An inserted operator changes all that is computed after it, and exporters number tensors. So operators are
matched in rounds. The first round compares the whole computation before and after an operator. The next two
compare one of both, then the names of its weights, then of its results. Each match spreads to its neighbours.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import LARGE, chunks, is_constant, is_constant_node
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import CUSTOM_DOMAIN, DOMAIN, dims_of, dtype_name

LONGEST_RUN = 2000
"""Operators without a match between two matches, beyond which none of them are aligned."""


@dataclass
class Matching:
    """The pairs of two graphs.

    Attributes:
        nodes: Operators of the second graph, by those of the first.
        values: Tensors of the second graph, by those of the first.
        outer: Those of `values` that belong to graphs around the first one (ONNX).
    """

    nodes: dict[ir.Node, ir.Node] = field(default_factory=dict)
    values: dict[ir.Value, ir.Value] = field(default_factory=dict)
    outer: set[ir.Value] = field(default_factory=set)


def match_graphs(
    first: ir.Graph,
    second: ir.Graph,
    known: Iterable[tuple[ir.Value, ir.Value]],
    outer: Iterable[tuple[ir.Value, ir.Value]] = (),
) -> Matching:
    """Match the operators and tensors of two graphs.

    Args:
        first: A graph.
        second: Another.
        known: Inputs and outputs that correspond.
        outer: Values of the graphs around them that they use, and that correspond.

    Returns:
        The pairs. Each operator and tensor is in one pair at most.
    """
    outer = list(outer)
    matching = _Matcher(first, second, [*known, *outer]).run()
    matching.outer = {a for a, _ in outer}
    return matching


def options_of(node: ir.Node, with_graphs: bool = True) -> dict[str, Any]:
    """Return the options of an operator, in a form that can be compared.

    Args:
        node: Any node.
        with_graphs: Whether graphs in attributes (ONNX) are among them.

    Returns:
        Numbers, texts and tuples by name. Tensors, and graphs in attributes (ONNX), are digests. Graphs of
        Circle are left out: they are compared as graphs of the model.
    """
    options: dict[str, Any] = {}
    for name, attribute in node.attributes.items():
        value = attribute.value
        if attribute.is_ref():
            options[name] = f"attribute {attribute.ref_attr_name}"
        elif attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            if with_graphs and node.domain not in (DOMAIN, CUSTOM_DOMAIN):
                is_one = attribute.type == ir.AttributeType.GRAPH
                inner = [attribute.as_graph()] if is_one else attribute.as_graphs()
                options[name] = ", ".join(map(_graph_digest, inner))
        elif attribute.type == ir.AttributeType.TENSOR and not is_constant_node(node):
            options[name] = _tensor_digest(value)
        elif attribute.type == ir.AttributeType.TENSOR:
            options[name] = f"{value.dtype} {list(value.shape)}"  # its numbers are compared as a constant
        else:
            options[name] = tuple(value) if isinstance(value, list | tuple | np.ndarray) else value
    custom = node.meta.get("fields", {}).get("customOptions")
    if custom is not None:
        options["customOptions"] = bytes(np.asarray(custom, np.uint8)).hex()
    return options


def _graph_digest(graph: ir.Graph) -> str:
    """A digest of a graph in an attribute: its operators, options, small constants and names."""
    digest = hashlib.sha256()
    for value in (*graph.inputs, *graph.outputs):
        digest.update(f"{value.name} {dims_of(value)};".encode())
    for name, value in graph.initializers.items():
        digest.update(f"{name} {_constant(value)!r};".encode())
    for node in graph:
        names = [value.name if value is not None else None for value in (*node.inputs, *node.outputs)]
        digest.update(f"{_kind(node)} {names} {sorted(options_of(node).items())!r};".encode())
    return f"graph {digest.hexdigest()[:16]}"


def _tensor_digest(tensor: ir.TensorProtocol) -> str:
    digest = hashlib.sha256()
    for chunk in chunks(tensor):
        digest.update(chunk)
    return f"{tensor.dtype} {list(tensor.shape)} {digest.hexdigest()[:16]}"


def operator_name(node: ir.Node) -> str:
    """Return the name of an operator.

    Args:
        node: Any node.

    Returns:
        The builtin's name, or a custom operator's code.
    """
    return node.op_type


class _Matcher:
    def __init__(
        self, first: ir.Graph, second: ir.Graph, known: Collection[tuple[ir.Value, ir.Value]]
    ) -> None:
        self.graphs = (first, second)
        self.first, self.second = list(first), list(second)
        self.matching = Matching()
        self.matched: set[ir.Node] = set()
        """Operators of the second graph that have a match."""
        self.matched_values: set[ir.Value] = set()
        self.labels: dict[ir.Value, Hashable] = {}
        for number, (a, b) in enumerate(known):
            self.labels[a] = self.labels[b] = ("io", number)
        self.known = known
        self.operators = {node: _operator(node) for node in (*self.first, *self.second)}

    def run(self) -> Matching:
        known = self.known
        for a, b in known:
            self._pair_values(a, b)
        sources = [_hashes_of_sources(nodes, self.labels, self.operators) for nodes in self._sides()]
        users = [_hashes_of_users(nodes, self.labels, self.operators) for nodes in self._sides()]
        before, after = sources[0] | sources[1], users[0] | users[1]
        self._round(lambda node: (before[node], after[node]))
        for a, b in known:
            self._spread_from_values(a, b)
        self._round(lambda node: before[node])
        self._round(lambda node: after[node])
        self._round(self._weights)
        self._round(self._names)
        self._align_rest()
        self._pair_rest()
        return self.matching

    def _sides(self) -> tuple[list[ir.Node], list[ir.Node]]:
        return self.first, self.second

    # ---- rounds ------------------------------------------------------------------------------------

    def _round(self, key: Callable[[ir.Node], Hashable]) -> None:
        """Match the operators that have equal keys, and spread the matches."""
        groups: list[dict[Hashable, list[ir.Node]]] = []
        for nodes, matched in ((self.first, self.matching.nodes), (self.second, self.matched)):
            group = defaultdict(list)
            for node in nodes:
                if node not in matched and (of_node := key(node)) is not None:
                    group[of_node].append(node)
            groups.append(group)
        for one, some in groups[0].items():
            others = groups[1].get(one, [])
            if len(some) != len(others):
                continue
            by_name = {_result(node): node for node in others}
            named = [(a, by_name[_result(a)]) for a in some if _result(a) in by_name]
            rest_a = [a for a in some if _result(a) not in by_name]
            taken = {b for _, b in named}
            rest_b = [b for b in others if b not in taken]
            pairs = named if len(taken) == len(named) else []
            pairs = (
                [*pairs, *zip(rest_a, rest_b, strict=True)] if pairs else list(zip(some, others, strict=True))
            )
            for a, b in pairs:
                if not self._contradicts(a, b):
                    self._pair(a, b)

    def _weights(self, node: ir.Node) -> Hashable | None:
        names = tuple(v.name for v in node.inputs if v is not None and is_constant(v) and _is_named_weight(v))
        return (_kind(node), names) if names else None

    def _names(self, node: ir.Node) -> Hashable | None:
        return (_kind(node), _result(node)) if _result(node) else None

    def _contradicts(self, a: ir.Node, b: ir.Node) -> bool:
        """Whether all operands of both are computed, and have other matches than each other."""
        verdicts = []
        for x, y in zip(a.inputs, b.inputs, strict=False):
            if x is None or y is None or is_constant(x) or is_constant(y):
                continue
            match = self.matching.values.get(x)
            verdicts.append(match is not None and match is not y and y in self.matched_values)
        return bool(verdicts) and all(verdicts)

    # ---- pairs -------------------------------------------------------------------------------------

    def _pair_values(self, a: ir.Value, b: ir.Value) -> None:
        if a not in self.matching.values and b not in self.matched_values:
            self.matching.values[a] = b
            self.matched_values.add(b)

    def _pair(self, a: ir.Node, b: ir.Node) -> None:
        """Match two operators, and from there the neighbours that can only be each other."""
        pending = [(a, b)]
        while pending:
            a, b = pending.pop()
            if a in self.matching.nodes or b in self.matched:
                continue
            self.matching.nodes[a] = b
            self.matched.add(b)
            for result, other in zip(a.outputs, b.outputs, strict=False):
                self._pair_values(result, other)
                pending += self._users(result, other)
            for x, y in zip(a.inputs, b.inputs, strict=False):
                if x is not None and y is not None:
                    pending += self._producers(x, y)

    def _spread_from_values(self, a: ir.Value, b: ir.Value) -> None:
        for pair in (*self._users(a, b), *self._producers(a, b)):
            self._pair(*pair)

    def _producers(self, x: ir.Value, y: ir.Value) -> Iterator[tuple[ir.Node, ir.Node]]:
        a, b = x.producer(), y.producer()
        if a is None or b is None or a.graph is not self.graphs[0] or b.graph is not self.graphs[1]:
            return  # a graph around this one computes it
        if self._is_open(a, b) and x.index() == y.index():
            yield a, b

    def _users(self, x: ir.Value, y: ir.Value) -> Iterator[tuple[ir.Node, ir.Node]]:
        """The users of two values that are the only ones of their kind."""
        sides = []
        for value, matched in ((x, self.matching.nodes), (y, self.matched)):
            users = defaultdict(list)
            for node, operand in value.uses():
                if node not in matched and node.graph in self.graphs:
                    users[_kind(node), operand].append(node)
            sides.append(users)
        for key, nodes in sides[0].items():
            others = sides[1].get(key, [])
            if len(nodes) == len(others) == 1:
                yield nodes[0], others[0]

    def _is_open(self, a: ir.Node, b: ir.Node) -> bool:
        return a not in self.matching.nodes and b not in self.matched and _kind(a) == _kind(b)

    # ---- the rest ----------------------------------------------------------------------------------

    def _align_rest(self) -> None:
        """Match what is left between two neighbours that match, in the order of the graphs."""
        runs = self._runs(self.first, self.matching.nodes)
        others = self._runs(self.second, {b: b for b in self.matched})
        for start, some in runs.items():
            rest = others.get(start, [])
            if not rest or len(some) > LONGEST_RUN or len(rest) > LONGEST_RUN:
                continue
            keys, others_keys = ([self.operators[node] for node in nodes] for nodes in (some, rest))
            for block in SequenceMatcher(None, keys, others_keys, autojunk=False).get_matching_blocks():
                for k in range(block.size):
                    a, b = some[block.a + k], rest[block.b + k]
                    if self._is_open(a, b):
                        self._pair(a, b)

    def _runs(
        self, nodes: Iterable[ir.Node], matched: Mapping[ir.Node, ir.Node]
    ) -> dict[ir.Node | None, list[ir.Node]]:
        """Operators without a match, by the match of the one that comes before them."""
        runs: dict[ir.Node | None, list[ir.Node]] = defaultdict(list)
        last = None
        for node in nodes:
            if node in matched:
                last = matched[node]
            else:
                runs[last].append(node)
        return runs

    def _pair_rest(self) -> None:
        """Match constants and variables by their operators, and by name the results of other operators."""
        for a, b in self.matching.nodes.items():
            for x, y in zip(a.inputs, b.inputs, strict=False):
                if x is not None and y is not None and _is_stored(x) and _is_stored(y):
                    self._pair_values(x, y)
        results = {v.name: v for node in self.second for v in node.outputs if v not in self.matched_values}
        for value in (v for node in self.first for v in node.outputs):
            if value not in self.matching.values and value.name and value.name in results:
                self._pair_values(value, results[value.name])


def _is_stored(value: ir.Value) -> bool:
    """Whether a value is a constant or a variable: nothing computes it, and no caller passes it."""
    return value.producer() is None and not value.is_graph_input()


def _kind(node: ir.Node) -> tuple[str, str]:
    return node.domain, node.op_type


def _operator(node: ir.Node) -> int:
    """Equal for operators that compute the same from their operands."""
    results = tuple((dtype_name(value), dims_of(value)) for value in node.outputs)
    return hash((_kind(node), tuple(sorted((k, repr(v)) for k, v in options_of(node).items())), results))


def _result(node: ir.Node) -> str:
    return (node.outputs[0].name or "") if node.outputs else ""


def _is_named_weight(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.nbytes >= LARGE and bool(value.name)


def _constant(value: ir.Value) -> Hashable:
    """Small constants by their bytes, large ones by their names."""
    tensor = value.const_value
    assert tensor is not None
    if isinstance(tensor, UnboundTensor) or tensor.nbytes >= LARGE:
        return "constant", value.name, dims_of(value)
    return "constant", dtype_name(value), dims_of(value), b"".join(chunks(tensor))


def _hashes_of_sources(
    nodes: Iterable[ir.Node], labels: Mapping[ir.Value, Hashable], operators: Mapping[ir.Node, int]
) -> dict[ir.Node, int]:
    """Hashes that are equal where operators compute the same from the same inputs."""
    hashes: dict[ir.Node, int] = {}

    def of(value: ir.Value | None) -> Hashable:
        if value is None:
            return None
        if is_constant(value):
            return _constant(value)
        producer = value.producer()
        if producer is None or value.is_graph_input() or producer not in hashes:
            return labels.get(value, ("input", value.name))
        return hashes.get(producer, 0), value.index()

    for node in nodes:
        hashes[node] = hash((operators[node], tuple(map(of, node.inputs))))
    return hashes


def _hashes_of_users(
    nodes: list[ir.Node], labels: Mapping[ir.Value, Hashable], operators: Mapping[ir.Node, int]
) -> dict[ir.Node, int]:
    """Hashes that are equal where the same is computed from operators' results."""
    hashes: dict[ir.Node, int] = {}
    for node in reversed(nodes):
        uses = tuple(
            (
                hash(labels.get(value)) if value.is_graph_output() else 0,
                tuple(sorted((hashes.get(user, 0), operand) for user, operand in value.uses())),
            )
            for value in node.outputs
        )
        constants = tuple(
            _constant(value) if value is not None and is_constant(value) else None for value in node.inputs
        )
        hashes[node] = hash((operators[node], constants, uses))
    return hashes
