"""Circle to TFLite: Circle's own operators become TFLite builtins.

RMS_NORM and ROPE become arithmetic. Arithmetic that computes GELU becomes GELU. ATTENTION is expanded to its
parts; `o2o.lower.litert.attention` lowers the core, `o2o.attention`. A cache that ATTENTION updates in place
becomes an input and an output (`present_key_0` for `past_key_0`). A runtime that binds both to one buffer
still updates it in place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.dialects import convert
from o2o.formats.litert_ops import is_registered, minimum_version
from o2o.formats.tensors import is_constant, is_quantized
from o2o.lower.litert.attention import FlashBlocks, lower_core_attention
from o2o.lower.litert.block_lookup import lower_block_lookups
from o2o.lower.litert.block_weights import has_other_blocks, lower_block_weights
from o2o.lower.litert.gelu import fuse_gelu
from o2o.lower.litert.rms_norm import lower_rms_norm
from o2o.lower.litert.rope import lower_rope
from o2o.model import CUSTOM_DOMAIN, DOMAIN, Model, inner_graphs, is_dynamic
from o2o.operators import core_attention
from o2o.operators.attention import is_attention, writes_cache
from o2o.operators.traits import traits_of
from o2o.rewriting.attention.expand_attention import expand_attentions
from o2o.rewriting.common_subexpression_elimination import eliminate_common_subexpressions
from o2o.rewriting.dead_code_elimination import remove_dead_constants, remove_dead_nodes
from o2o.rewriting.grouped_query import fold_grouped_queries

Lowering = Callable[[Model, ir.Graph, ir.Node], None]
"""Inserts builtins in front of a node, which stays without uses."""


def lowerings(flash: FlashBlocks = None) -> dict[tuple[str, str], Lowering]:
    """Return the operators that are lowered. A new one needs an entry here and a module of its own.

    Args:
        flash: The blocks of attention, see `lower_to_litert`.

    Returns:
        The lowering of each operator, by domain and type.
    """
    core = partial(lower_core_attention, flash=flash)
    return {
        (DOMAIN, "RMS_NORM"): lower_rms_norm,
        (DOMAIN, "ROPE"): lower_rope,
        **{(CUSTOM_DOMAIN, name): core for name in core_attention.NAMES},
    }


def is_lowered(node: ir.Node) -> bool:
    """Whether LiteRT needs builtins in the place of an operator.

    Args:
        node: Any node.

    Returns:
        True for ATTENTION, the operators of `lowerings`, and weights in blocks of another kind.
    """
    return is_attention(node) or (node.domain, node.op_type) in lowerings() or has_other_blocks(node)


def lower_to_litert(model: Model, flash: FlashBlocks = None) -> Model:
    """Change a Circle model, in place, into TFLite that LiteRT runs.

    Args:
        model: The Circle model.
        flash: Blocks of attention without a mask: sizes, True for the usual sizes, False for no blocks. None:
            the sizes in the options of `o2o.attention`; without these, blocks where they are faster.

    Returns:
        The same model.

    Raises:
        ModelError: LiteRT has no operator for a node, or a lowered operator has operands that are not float32
            of a fixed shape.
    """
    lowering_of = lowerings(flash)
    subgraphs = {inner for graph in model.graphs for node in graph for inner in inner_graphs(node)}
    for graph in model.graphs:
        for node in graph:
            if is_attention(node):
                _check_operands(model, graph, node)
            if writes_cache(node) and graph in subgraphs:
                raise ModelError(
                    f"{model.locate(graph, node)} writes caches in a subgraph that "
                    f"another operator runs, which is not supported"
                )
        expand_attentions(model, graph)
        for node in list(graph):
            lowering = lowering_of.get((node.domain, node.op_type))
            if lowering is not None:
                _check_operands(model, graph, node)
                lowering(model, graph, node)
                graph.remove(node, safe=True)
        lower_block_weights(model, graph)
        lower_block_lookups(model, graph)
        fuse_gelu(model, graph)
        remove_dead_nodes(graph)
        fold_grouped_queries(model, graph)
        eliminate_common_subexpressions(model, graph)
        remove_dead_nodes(graph)
        remove_dead_constants(graph)
        for node in graph:
            if node.domain == CUSTOM_DOMAIN:
                continue
            if not is_registered(node.op_type):
                raise ModelError(f"LiteRT has no operator {model.locate(graph, node)}")
            node.version = max(node.version or 1, minimum_version(node))
    convert(model, "tflite")
    return model


def _check_operands(model: Model, graph: ir.Graph, node: ir.Node) -> None:
    """Raise ModelError unless the operands are float32 of a fixed shape, quantized weights or a position."""
    traits = traits_of(node)
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        if index in traits.weights and is_constant(value) and is_quantized(value):
            continue  # FULLY_CONNECTED takes quantized weights
        is_position = index == traits.position and value.dtype in (ir.DataType.INT32, ir.DataType.INT64)
        if is_quantized(value) or not (value.dtype == ir.DataType.FLOAT or is_position):
            raise ModelError(f"{model.locate(graph, node)}: {value.name} is {value.dtype}, not float32")
        if is_dynamic(value):
            raise ModelError(f"{model.locate(graph, node)}: {value.name} has no fixed shape")
