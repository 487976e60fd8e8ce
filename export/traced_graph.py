"""A graph without weights, for all checkpoints of one architecture; other lengths are derived from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from export.options import FLASH, WeightsForm, WeightsType, parse_attention
from export.parameter_binding import bind_parameters, drop_unread, unused_tensors
from o2o.model import Model
from o2o.operators.core_attention import CoreAttention, adaptive_blocks, is_core_attention
from o2o.rewriting.deduplicate_constants import deduplicate_constants
from o2o.rewriting.resize_tokens import TokenResizer
from o2o.weights.checkpoint import Checkpoint
from o2o.weights.checkpoint_tensor import CheckpointTensor


@dataclass(frozen=True)
class StoredParameters:
    """Where the parameters of a model are in a checkpoint.

    Attributes:
        names: {parameter: the name of its stored tensor}, in the model's order.
        skipped: Names of stored tensors that the model does not use.
        ties: The names of the stored tensors of each tied parameter that is stored more than once.
        are_ties_equal: Whether the tensors of each of `ties` hold the same numbers.
    """

    names: Mapping[str, str]
    skipped: Sequence[str] = ()
    ties: Sequence[Sequence[str]] = ()
    are_ties_equal: bool = True


@dataclass(frozen=True)
class TracedGraph:
    """A graph without weights.

    Attributes:
        model: A Circle model of one signature. Its last inputs are the parameters, under their own names.
        parameters: Where the parameters are in the checkpoint.
    """

    model: Model
    parameters: StoredParameters

    def resized(
        self, resizer: TokenResizer, signature: str, tokens: int, attn_implementation: str
    ) -> TracedGraph:
        """Derive the graph that reads another number of tokens.

        Args:
            resizer: Of this graph's signature.
            signature: The name of the signature.
            tokens: T.
            attn_implementation: See `export.build_graph.prefill`. It decides the blocks of attention.

        Returns:
            The graph.

        Raises:
            MatchFailure: It is not proven to compute the same for each token.
        """
        model = replace(self.model, graphs=[], signatures=[])
        resizer.add(model, tokens, signature)
        if parse_attention(attn_implementation) == (FLASH, None):
            _set_blocks(model.graphs[0], tokens)
        return replace(self, model=model)

    def bind(self, checkpoint: Checkpoint, weights: WeightsForm, dtype: WeightsType) -> Model:
        """Make constants of the parameters. The graph has its weights afterwards.

        Args:
            checkpoint: The weights.
            weights: See `export.build_graph.prefill`.
            dtype: See `export.build_graph.prefill`.

        Returns:
            The model.

        Raises:
            ModelError: A tensor is not stored as a float.
        """
        model, graph = self.model, self.model.graphs[0]
        sources = {name: checkpoint.tensors[stored] for name, stored in self.parameters.names.items()}
        sources = drop_unread(graph, sources)
        bind_parameters(graph, sources, weights, dtype)
        # As bind.weights.py does for weights that are bound later.
        deduplicate_constants(model, only=CheckpointTensor)
        if weights == "external":
            model.unused = unused_tensors(checkpoint, graph, sources)
        return model


def _set_blocks(graph: ir.Graph, tokens: int) -> None:
    """Let attention be computed in the default blocks for T tokens."""
    for node in graph:
        if is_core_attention(node):
            of = replace(CoreAttention.of(node), blocks=adaptive_blocks(tokens))
            node.meta["fields"] = of.build("blocks").meta["fields"]
