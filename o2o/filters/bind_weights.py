"""`bind.weights.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from o2o.cli.text import counted, listed
from o2o.filters.base import ALL_FORMATS, Filter
from o2o.model import Model
from o2o.rewriting.deduplicate_constants import deduplicate_constants
from o2o.weights.binding import bind
from o2o.weights.checkpoint_tensor import CheckpointTensor
from o2o.weights.onnx_references import refer_to_checkpoint


class BindWeights(Filter):
    """Put the weights of a checkpoint into a model that only refers to them.

        w -> (model.safetensors, model.norm.weight)      w const [2048] float32
        |                                           =>   |
        MUL                                              MUL

    Export with --weights external leaves the weights in the checkpoint, so that files stay small and filters
    fast. This filter streams each tensor from the checkpoint (safetensors or PyTorch files, also sharded)
    into the model, and converts it to the graph's dtype. Tensors with equal bytes are stored once.
    A model without references passes unchanged. Binding adds no entry to the history: the result equals an
    export with embedded weights.
    ONNX: with --checkpoint, weights without data get theirs by name. These are external data of a file that
    does not exist, initializers without data, and inputs that are parameters. Names come from constants, or
    from the modules in names and metadata of nodes. Shapes show which matrices are transposed.
    Refused: tensors that are missing, unused or of another shape, and numbers that are not finite or do not
    fit the dtype; the message names them (O2O_ALLOW_NON_FINITE=1 accepts such numbers).
    """

    name = "bind.weights.py"
    purpose = "Weights"
    input_formats = ALL_FORMATS
    usage_example = "gc.py < graph.circle | bind.weights.py -o model.circle"
    records_history = False

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--checkpoint",
            metavar="DIR",
            help="take the tensors from this folder, not the recorded files",
        )
        parser.add_argument(
            "--partial", action="store_true", help="accept tensors that the model does not use"
        )

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        if model.format == "onnx" and (inputs := refer_to_checkpoint(model, args.checkpoint)):
            self.log(f"{counted(len(inputs), 'input')} became constant: {listed(inputs, 3)}")
        count = bind(model, args.checkpoint, args.partial)
        if not count:
            self.log("nothing to bind: the model holds its weights")
            return
        _, _, saved = deduplicate_constants(model, only=CheckpointTensor)
        bound = f"bound {counted(count, 'tensor')}"
        self.log(bound + (f"; equal ones are stored once, which saves {saved:,} bytes" if saved else ""))

    def check(self, models: Sequence[Model], result: Model, args: argparse.Namespace) -> str:
        from o2o.check.checkpoint import refuse_wrong_weights

        assert isinstance(result, Model)
        for model in models:
            if model.format == "onnx":
                refer_to_checkpoint(model, args.checkpoint)
        refuse_wrong_weights(models, result, args.checkpoint)
        for model in models:
            bind(model, args.checkpoint, args.partial)
        return super().check(models, result, args)


main = BindWeights.main
