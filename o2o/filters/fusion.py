"""Base class of the fuse filters: apply a rewrite rule to every graph and report the result."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, get_args

import onnx_ir as ir

from o2o.cli.text import counted
from o2o.errors import ModelError
from o2o.filters.base import Filter
from o2o.model import Model, is_dynamic
from o2o.onnx_fusion.forms import HALF, Form
from o2o.rewriting.matchers import MatchFailure
from o2o.rewriting.rewrite_rule import RewriteRule, apply_rule

if TYPE_CHECKING:
    from o2o.onnx_fusion.rule import OnnxRule

HALF_TOLERANCE = 2.0**-6
"""Of --check for a model in half precision: a fused operator rounds fewer times."""
Failures = Sequence[tuple[ir.Node, MatchFailure]]


class Fusion(Filter):
    """A filter that replaces groups of operators by one operator. A subclass gives `noun` and `rule`."""

    _is_half = False  # whether the model computes in half precision
    noun: ClassVar[str]  # what is fused, in the singular
    has_forms: ClassVar[bool] = True  # whether the result in ONNX has a form

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        if self.has_forms:
            parser.add_argument(
                "--form",
                choices=get_args(Form),
                default="standard",
                help="for ONNX: operators of ONNX, opset 23, or of ONNX Runtime (default: standard)",
            )
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

    def onnx_rule(self, form: Form) -> OnnxRule:
        """Return the rule for ONNX models.

        Args:
            form: The form of the result.

        Returns:
            The rule.
        """
        raise NotImplementedError

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        if model.format == "onnx":
            self.apply_to_onnx(model, args)
            return
        rule = self.rule(model, args)
        for graph in static_graphs(self, model):
            result = apply_rule(model, graph, rule)
            self.report(model.label(graph), result.rewritten, [("alone", result.failures)], args.explain)

    def apply_to_onnx(self, model: Model, args: argparse.Namespace) -> None:
        """Fuse in an ONNX model.

        Args:
            model: The model, changed in place.
            args: The parsed arguments.
        """
        from o2o.onnx_fusion.rule import apply_to_onnx  # it takes a while, and other formats do not need it

        self._is_half = any(v.dtype in HALF for graph in model.graphs for node in graph for v in node.outputs)
        for graph in model.graphs:
            try:
                result = apply_to_onnx(model, graph, self.onnx_rule(getattr(args, "form", "standard")))
            except ModelError as error:
                self.log(f"{model.label(graph)}: left alone: {error}")
            else:
                self.report(model.label(graph), result.rewritten, [("alone", result.failures)], args.explain)

    def tolerance(self, args: argparse.Namespace) -> float:
        return HALF_TOLERANCE if self._is_half else super().tolerance(args)

    def report(self, label: str, fused: int, left: Sequence[tuple[str, Failures]], explain: bool) -> None:
        """Log the result for one graph.

        Args:
            label: The name of the graph.
            fused: The number of groups that were fused.
            left: Candidates that were not, by what became of them.
            explain: Whether to log the reasons.
        """
        rest = [f", left {counted(len(failures), 'candidate')} {how}" for how, failures in left if failures]
        hint = " (--explain gives reasons)" if rest and not explain else ""
        self.log(f"{label}: fused {counted(fused, self.noun)}{''.join(rest)}{hint}")
        if explain:
            for node, failure in (failed for _, failures in left for failed in failures):
                self.log(f"{label}: {node.op_type} {node.outputs[0].name}: {failure}")


def static_graphs(filter_: Filter, model: Model) -> Iterator[ir.Graph]:
    """Yield the graphs of fixed shapes, and log the others.

    Args:
        filter_: The filter that logs.
        model: The model.

    Yields:
        Each graph without a value of unknown shape.
    """
    for graph in model.graphs:
        if (dynamic := _dynamic_value(graph)) is not None:
            filter_.log(f"{model.label(graph)}: left alone, as {dynamic.name} has no fixed shape")
        else:
            yield graph


def _dynamic_value(graph: ir.Graph) -> ir.Value | None:
    """A value of unknown shape, if there is one: matching proves facts about shapes."""
    values = (*graph.inputs, *(value for node in graph for value in node.outputs))
    return next((value for value in values if is_dynamic(value)), None)
