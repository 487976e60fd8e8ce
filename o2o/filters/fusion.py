"""What all fusions share: try every candidate, rewrite those that are proven, explain the others."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any, ClassVar

import onnx_ir as ir

from o2o.cli.text import counted
from o2o.filters.base import Filter
from o2o.model import DOMAIN, Model, is_dynamic
from o2o.rewriting.dead_code_elimination import remove_dead_nodes
from o2o.rewriting.matchers import Miss, miss


class Fusion(Filter):
    """A filter that replaces groups of operators by one that means the same.

    A subclass says where to look (`anchor`: operator types), what matches (`match`, which raises Miss) and
    what takes its place (`rewrite`). Matching never changes the graph.
    """

    anchor: ClassVar[tuple[str, ...]]
    noun: ClassVar[str]  # what is fused, in the singular

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--explain", action="store_true", help="for each candidate left alone, the condition that failed"
        )

    def candidates(self, graph: ir.Graph) -> Iterable[ir.Node]:
        """The nodes to try, in graph order."""
        return (node for node in graph if node.domain == DOMAIN and node.op_type in self.anchor)

    def match(self, node: ir.Node) -> Any:
        """What `rewrite` needs to know. Raises Miss with the first condition that fails, and where."""
        raise NotImplementedError

    def rewrite(self, model: Model, graph: ir.Graph, match: Any) -> None:
        """Put the fused operator in place. What it leaves unused is removed afterwards."""
        raise NotImplementedError

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        for graph in model.graphs:
            if (dynamic := _dynamic_value(graph)) is not None:
                self.say(f"{model.label(graph)}: left alone, as {dynamic.name} has no fixed shape")
                continue
            fused = 0
            misses: list[tuple[ir.Node, Miss]] = []
            for node in list(self.candidates(graph)):
                if node.graph is not graph:
                    continue  # an earlier rewrite took it
                try:
                    _check_floats(node)
                    match = self.match(node)
                except Miss as found:
                    misses.append((node, found))
                    continue
                self.rewrite(model, graph, match)
                fused += 1
            remove_dead_nodes(graph)
            self._report(model.label(graph), fused, misses, args.explain)

    def _report(self, label: str, fused: int, misses: list[tuple[ir.Node, Miss]], explain: bool) -> None:
        left = ""
        if misses:
            left = f", left {counted(len(misses), 'candidate')} alone"
            left += "" if explain else " (--explain tells why)"
        self.say(f"{label}: fused {counted(fused, self.noun)}{left}")
        if explain:
            for node, miss in misses:
                self.say(f"{label}: {node.op_type} {node.outputs[0].name}: {miss}")


def _dynamic_value(graph: ir.Graph) -> ir.Value | None:
    """A value of which the shape is not known: proofs here are about shapes."""
    values = (*graph.inputs, *(value for node in graph for value in node.outputs))
    return next((value for value in values if is_dynamic(value)), None)


def _check_floats(node: ir.Node) -> None:
    """Miss for integers and what is quantised to them, which no fused operator here computes alike."""
    dtype = node.outputs[0].dtype
    if dtype is None or not dtype.is_floating_point():
        miss(f"it computes {dtype}, not floats", node.outputs[0])
