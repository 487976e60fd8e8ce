"""Rewrite rules: match a group of operators, prove its meaning, and replace it by one operator."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import onnx_ir as ir

from o2o.model import DOMAIN, Model
from o2o.rewriting.dead_code_elimination import remove_dead_nodes
from o2o.rewriting.matchers import MatchFailure, fail


class RewriteRule:
    """One rewrite. A subclass gives `anchors`, `match` and `rewrite`; matching never changes the graph.

    onnxscript's `RewriteRule` matches a pattern of nodes. A rule here follows the data flow from an anchor
    instead: exporters write one computation in many ways, and every failure has a reason.
    """

    anchors: ClassVar[tuple[str, ...]]  # operator types at which matching starts

    def candidates(self, graph: ir.Graph) -> Iterable[ir.Node]:
        """Yield the nodes of `graph` at which to try a match, in graph order.

        Args:
            graph: The graph.

        Yields:
            Nodes, in graph order.
        """
        return (node for node in graph if node.domain == DOMAIN and node.op_type in self.anchors)

    def match(self, node: ir.Node) -> Any:
        """Return what `rewrite` needs.

        Args:
            node: A candidate.

        Returns:
            The match.

        Raises:
            MatchFailure: The first condition that fails, with the tensor.
        """
        raise NotImplementedError

    def rewrite(self, model: Model, graph: ir.Graph, match: Any) -> None:
        """Insert the new operator. Dead-code elimination removes the old ones afterwards.

        Args:
            model: The model of `graph`; its signatures stay in step.
            graph: Changed in place.
            match: The result of `match`.
        """
        raise NotImplementedError


@dataclass
class RuleResult:
    """The result of a rule on one graph: the number of rewrites, and failed candidates with their reasons."""

    rewritten: int = 0
    failures: list[tuple[ir.Node, MatchFailure]] = field(default_factory=list)


def apply_rule(model: Model, graph: ir.Graph, rule: RewriteRule) -> RuleResult:
    """Rewrite every candidate of `graph` that `rule` matches, then eliminate dead nodes.

    Args:
        model: The model of `graph`; its signatures stay in step.
        graph: Changed in place.
        rule: The rule. Candidates that do not compute floats are never tried.

    Returns:
        The number of rewrites, and the failed candidates.
    """
    result = RuleResult()
    for node in list(rule.candidates(graph)):
        if node.graph is not graph:
            continue  # an earlier rewrite removed it
        try:
            _check_float(node)
            match = rule.match(node)
        except MatchFailure as failure:
            result.failures.append((node, failure))
            continue
        rule.rewrite(model, graph, match)
        result.rewritten += 1
    remove_dead_nodes(graph)
    return result


def _check_float(node: ir.Node) -> None:
    """Integers and quantized tensors fail: fused operators do not compute them alike."""
    dtype = node.outputs[0].dtype
    if dtype is None or not dtype.is_floating_point():
        fail(f"it computes {dtype}, not floats", node.outputs[0])
