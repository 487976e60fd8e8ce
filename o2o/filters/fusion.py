"""Base class of the fuse filters: apply a rewrite rule to every graph and report the result."""

from __future__ import annotations

import argparse
from typing import ClassVar

import onnx_ir as ir

from o2o.cli.text import counted
from o2o.filters.base import Filter
from o2o.model import Model, is_dynamic
from o2o.rewriting.rewrite_rule import RewriteRule, RuleResult, apply_rule


class Fusion(Filter):
    """A filter that replaces groups of operators by one operator. A subclass gives `noun` and `rule`."""

    noun: ClassVar[str]  # what is fused, in the singular

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--explain", action="store_true", help="for each candidate left alone, the condition that failed"
        )

    def rule(self, model: Model, args: argparse.Namespace) -> RewriteRule:
        """Return the rewrite rule for `model`.

        Args:
            model: The model.
            args: The parsed arguments.

        Returns:
            A rule for this model.
        """
        raise NotImplementedError

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        rule = self.rule(model, args)
        for graph in model.graphs:
            label = model.label(graph)
            if (dynamic := _dynamic_value(graph)) is not None:
                self.log(f"{label}: left alone, as {dynamic.name} has no fixed shape")
            else:
                self._report(label, apply_rule(model, graph, rule), args.explain)

    def _report(self, label: str, result: RuleResult, explain: bool) -> None:
        left = ""
        if result.failures:
            left = f", left {counted(len(result.failures), 'candidate')} alone"
            left += "" if explain else " (--explain gives reasons)"
        self.log(f"{label}: fused {counted(result.rewritten, self.noun)}{left}")
        if explain:
            for node, failure in result.failures:
                self.log(f"{label}: {node.op_type} {node.outputs[0].name}: {failure}")


def _dynamic_value(graph: ir.Graph) -> ir.Value | None:
    """A value of unknown shape, if there is one: matching proves facts about shapes."""
    values = (*graph.inputs, *(value for node in graph for value in node.outputs))
    return next((value for value in values if is_dynamic(value)), None)
