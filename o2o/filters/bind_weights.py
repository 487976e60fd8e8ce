"""`bind.weights.py`."""

from __future__ import annotations

import argparse

from o2o.cli.text import counted
from o2o.filters.base import Filter
from o2o.model import Model
from o2o.rewriting.deduplicate_constants import deduplicate_constants
from o2o.weights.binding import bind
from o2o.weights.weight import Weight


class BindWeights(Filter):
    """Put the weights into a model that only refers to them.

        w -> (model.safetensors, model.norm.weight)      w const [2048] float32
        |                                           =>   |
        MUL                                              MUL

    Export with --weights external leaves the numbers in the checkpoint: the files on the way stay small, and
    filters quick. This resolves the references, from safetensors or PyTorch's files, single or sharded, and
    streams each tensor into the model, converted to the graph's dtype on the way. Tensors with equal bytes
    are stored once. A model without references passes unchanged, and binding leaves no trace in the history:
    the result is the file that embedding at the start would have given.
    Refused: tensors that are missing, left over or of another shape; each is named.
    """

    name = "bind.weights.py"
    usage_example = "gc.py < graph.circle | bind.weights.py -o model.circle"
    records_history = False

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--checkpoint", metavar="DIR", help="take the tensors from here, not from where they were"
        )
        parser.add_argument(
            "--partial", action="store_true", help="the model may have no place for some of the tensors"
        )

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        count = bind(model, args.checkpoint, args.partial)
        if not count:
            self.log("there is nothing to bind")
            return
        _, _, saved = deduplicate_constants(model, only=Weight)
        told = f"bound {counted(count, 'tensor')}"
        self.log(told + (f"; equal ones are stored once, which saves {saved:,} bytes" if saved else ""))


main = BindWeights.main
