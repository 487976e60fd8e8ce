"""Rules that fuse operators of an ONNX graph: matched on the twin, applied to the graph."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from o2o.errors import ModelError
from o2o.model import Model
from o2o.onnx_fusion.forms import CONTRIB, Form
from o2o.onnx_fusion.twin import Twin
from o2o.rewriting.builder import add_constant, fresh_name
from o2o.rewriting.dead_code_elimination import remove_dead_nodes
from o2o.rewriting.matchers import MatchFailure, fail
from o2o.rewriting.onnx_builder import OnnxBuilder
from o2o.rewriting.onnx_opsets import opset_of, raise_opset
from o2o.rewriting.rewire import replace_output
from o2o.rewriting.rewrite_rule import RuleResult

OPSET = 23
"""The first opset of ONNX's Attention, RMSNormalization and RotaryEmbedding."""


class Site:
    """The place in an ONNX graph where one match is applied."""

    def __init__(self, model: Model, twin: Twin, before: ir.Node) -> None:
        """Choose the place.

        Args:
            model: The model; its signatures stay in step.
            twin: The twin of the graph.
            before: New nodes stand in front of this one.
        """
        self.model, self.twin, self.graph = model, twin, twin.source
        self.op = OnnxBuilder(self.graph, before=before)

    def insert(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        like: Sequence[ir.Value],
        domain: str = "",
        **attributes: Any,
    ) -> list[ir.Value]:
        """Insert a node.

        Args:
            op_type: The operator.
            inputs: Its operands; None for one that is absent.
            like: A value for each result, whose name, shape and type it has.
            domain: The domain of the operator.
            **attributes: Its attributes.

        Returns:
            The results.
        """
        results = [
            ir.Value(name=fresh_name(self.graph, f"{v.name}/fused"), shape=v.shape, type=v.type) for v in like
        ]
        options = [ir.convenience.convert_attribute(key, item) for key, item in attributes.items()]
        inputs = self._current(inputs)
        name = f"{like[0].name}/{op_type}"
        self.op.add(ir.Node(domain, op_type, inputs, options, outputs=results, name=name))
        return results

    def compute(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        dtype: ir.DataType | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """Insert a node with one result, of no known shape.

        Args:
            op_type: The operator.
            inputs: Its operands.
            name: The name of the result, after that of operand 0.
            dtype: The dtype of the result. None: as operand 0.
            domain: The domain of the operator.
            **attributes: Its attributes.

        Returns:
            The result.
        """
        inputs = self._current(inputs)
        first = inputs[0]
        assert first is not None
        type_ = first.type if dtype is None else ir.TensorType(dtype)
        result = ir.Value(name=fresh_name(self.graph, f"{first.name}/{name}"), type=type_)
        options = [ir.convenience.convert_attribute(key, item) for key, item in attributes.items()]
        self.op.add(ir.Node(domain, op_type, inputs, options, outputs=[result], name=result.name))
        return result

    def ints(self, numbers: Sequence[int]) -> ir.Value:
        """Return a constant of int64; equal ones are shared.

        Args:
            numbers: Its numbers.

        Returns:
            The constant [len(numbers)].
        """
        return self._constant(np.asarray(numbers, np.int64), "ints_" + "_".join(map(str, numbers)))

    def number(self, number: int) -> ir.Value:
        """Return a constant of int64 without axes; equal ones are shared.

        Args:
            number: The number.

        Returns:
            The constant [].
        """
        return self._constant(np.asarray(number, np.int64), f"int_{number}")

    def _constant(self, array: np.ndarray, name: str) -> ir.Value:
        existing = self.graph.initializers.get(f"o2o/{name}")
        return existing if existing is not None else add_constant(self.graph, array, f"o2o/{name}")

    def dims(self, value: ir.Value, start: int, end: int) -> ir.Value:
        """Insert operators that compute dimensions of a value.

        Args:
            value: The value.
            start: The first dimension.
            end: The dimension after the last one.

        Returns:
            int64 [end - start].
        """
        shape = self.compute("Shape", [value], "shape", ir.DataType.INT64)
        return self.compute("Slice", [shape, self.ints([start]), self.ints([end])], "dims")

    def concat(self, parts: Sequence[ir.Value]) -> ir.Value:
        """Insert the concatenation of vectors.

        Args:
            parts: Vectors of int64.

        Returns:
            The vector.
        """
        return self.compute("Concat", parts, "shape", axis=0)

    def _current(self, inputs: Sequence[ir.Value | None]) -> list[ir.Value | None]:
        """The operands as they are now, without absent ones at the end."""
        current = [None if value is None else self.twin.current(value) for value in inputs]
        while current[-1] is None:
            current.pop()
        return current

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let a new value take the place of a result.

        Args:
            old: A result in the graph.
            new: Its replacement.
        """
        replace_output(self.model, old, new)
        self.twin.replace(old, new)


class OnnxRule:
    """One fusion. A subclass matches on the twin and applies the match to the ONNX graph."""

    opset: ClassVar[int] = OPSET

    def __init__(self, form: Form) -> None:
        """Choose the operators.

        Args:
            form: The form of the result.
        """
        self.form = form

    def candidates(self, twin: Twin) -> list[ir.Node]:
        """List the nodes of the twin at which to try a match.

        Args:
            twin: The twin.

        Returns:
            Nodes in graph order.
        """
        raise NotImplementedError

    def match(self, twin: Twin, node: ir.Node) -> Any:
        """Match, and find all operands in the ONNX graph.

        Args:
            twin: The twin.
            node: A candidate.

        Returns:
            What `apply` needs.

        Raises:
            MatchFailure: The first condition that fails.
        """
        raise NotImplementedError

    def apply(self, model: Model, twin: Twin, match: Any) -> None:
        """Insert the new operator in the ONNX graph.

        Args:
            model: The model; its signatures stay in step.
            twin: The twin.
            match: The result of `match`.
        """
        raise NotImplementedError


def apply_to_onnx(model: Model, graph: ir.Graph, rule: OnnxRule) -> RuleResult:
    """Fuse what a rule matches in one graph.

    Args:
        model: An ONNX model. Its opset is raised if the result needs that.
        graph: A graph of the model, changed in place.
        rule: The rule.

    Returns:
        The number of fusions, and the candidates that were left alone.

    Raises:
        ModelError: The graph has no twin, or the opset cannot be raised.
    """
    twin, result = Twin(graph), RuleResult()
    matches = []
    for node in rule.candidates(twin):
        try:
            matches.append(rule.match(twin, node))
        except MatchFailure as failure:
            result.failures.append((node, failure))
    if not matches:
        return result
    if rule.form == "standard" and opset_of(model) < rule.opset:
        try:
            raise_opset(model, rule.opset)
        except ModelError as error:
            raise ModelError(
                f"its operators need opset {rule.opset}, and {error}; --form ort takes ONNX Runtime's"
            ) from error
    used = {name for name, value in graph.initializers.items() if value.uses()}
    for match in matches:
        rule.apply(model, twin, match)
    result.rewritten = len(matches)
    if rule.form == "ort":
        _import_contrib(model, graph)
    remove_dead_nodes(graph)
    for name in used:
        if not graph.initializers[name].uses() and not graph.initializers[name].is_graph_output():
            del graph.initializers[name]
    return result


def _import_contrib(model: Model, graph: ir.Graph) -> None:
    if any(node.domain == CONTRIB for node in graph):
        model.graphs[0].opset_imports.setdefault(CONTRIB, 1)


def node_after(values: Collection[ir.Value]) -> ir.Node:
    """Return the node of a result.

    Args:
        values: One value.

    Returns:
        Its node.

    Raises:
        MatchFailure: It is an input or constant.
    """
    (value,) = values
    node = value.producer()
    if node is None:
        fail("the result is an input or a constant", None)
    return node
