"""`gc.py`."""

from __future__ import annotations

import argparse

from o2o.cli.text import counted
from o2o.filters.base import ALL_FORMATS, Filter
from o2o.formats.tensors import stored_bytes
from o2o.model import Model
from o2o.rewriting.dead_code_elimination import (
    remove_dead_constants,
    remove_dead_functions,
    remove_dead_graphs,
    remove_dead_nodes,
    remove_loose_values,
)


class Gc(Filter):
    """Remove dead code: unused operators, constants, tensors and subgraphs.

        x -+- ADD ------- y            x --- ADD --- y
           +- MUL --- (unused)   =>
        w (unused)

    Operators stay if an output depends on them or if they have side effects, such as ATTENTION with caches.
    Subgraphs stay if they are the first, have a signature, or are run by an operator that stays. Of ONNX,
    branches and loop bodies are cleaned too, and functions stay that a graph calls. All inputs and outputs
    stay. Constants that share bytes still share them.
    Prints the number of removed parts. Refuses nothing: a model without dead code passes unchanged.
    """

    name = "gc.py"
    input_formats = ALL_FORMATS
    purpose = "Combine, cut, clean up, inspect"
    usage_example = "gc.py < model.circle > smaller.circle"

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        before = stored_bytes(model)
        nodes = sum(remove_dead_nodes(graph) for graph in model.all_graphs())
        loose = remove_loose_values(model)
        graphs = remove_dead_graphs(model)
        functions = remove_dead_functions(model)
        constants = sum(remove_dead_constants(graph) for graph in model.all_graphs())
        counts = [
            (nodes, "operator"),
            (constants, "constant"),
            (loose, "loose tensor"),
            (graphs, "subgraph"),
            (functions, "function"),
        ]
        removed = ", ".join(counted(number, noun) for number, noun in counts if number)
        freed = before - stored_bytes(model)
        self.log(f"removed {removed}; {freed:,} bytes of constants" if removed else "nothing to remove")


main = Gc.main
