"""`reorder.output.move_0_to_last.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from o2o.cli.arguments import add_signature
from o2o.cli.text import listed
from o2o.errors import UsageError
from o2o.filters.base import ALL_FORMATS, Filter
from o2o.filters.reorder_output import reorder
from o2o.model import Model
from o2o.rewriting.selectors import entry_graphs

if TYPE_CHECKING:
    from o2o.check.interface import Expected, ExpectedSignature, Tensors


class ReorderOutputMove0ToLast(Filter):
    """Move the first output to the end, in the graph and in its signatures.

        f -+- 0 logits                 f -+- 0 key
           +- 1 key             =>        +- 1 value
           +- 2 value                     +- 2 logits

    This is a special case of reorder.output.py. It exists for its established name.
    The filter changes the first graph and all graphs with a signature. --signature chooses one graph.
    Refused: a model in which no graph has two outputs.
    """

    name = "reorder.output.move_0_to_last.py"
    purpose = "Inputs and outputs"
    input_formats = ALL_FORMATS
    usage_example = "reorder.output.move_0_to_last.py < in.circle > out.circle"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_signature(parser)

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        graphs = [graph for graph in entry_graphs(model, args.signature) if len(graph.outputs) > 1]
        if not graphs:
            raise UsageError("nothing to move: no graph has more than one output")
        for graph in graphs:
            reorder(model, graph, [*range(1, len(graph.outputs)), 0])
            self.log(f"{model.label(graph)}: {listed([value.name or '' for value in graph.outputs])}")

    def expected(self, models: Sequence[Model], args: argparse.Namespace) -> Expected:
        from o2o.check.interface import signature_of, unchanged, with_outputs

        def moved(expected: ExpectedSignature) -> Tensors:
            signature = signature_of(models, expected)
            if args.signature not in (None, expected.source):
                return expected.outputs
            first, *others = signature.graph.outputs
            return {
                n: t
                for value in (*others, first)
                for n, t in expected.outputs.items()
                if signature.outputs[n] is value
            }

        return with_outputs(unchanged(models), moved)


main = ReorderOutputMove0ToLast.main
