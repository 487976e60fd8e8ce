"""Circle -> TFLite, as LiteRT likes it: Circle's own operators spelled in TFLite builtins.

RMS_NORM and ROPE become the arithmetic that they stand for, ATTENTION what `o2o.lower.litert.attention`
says. A
cache that ATTENTION updates in place becomes an input and an output (`present_key_0` for `past_key_0`): bind
both to one buffer and it stays in place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.dialects import called, convert
from o2o.formats.tensors import is_constant, is_quantized
from o2o.lower.litert.attention import Flash, lower_attention, lower_causal_attention
from o2o.lower.litert.op_versions import minimum_version
from o2o.lower.litert.registered_ops import is_registered
from o2o.lower.litert.rms_norm import lower_rms_norm
from o2o.lower.litert.rope import rotate
from o2o.model import CUSTOM_DOMAIN, DOMAIN, Model, attribute, is_dynamic
from o2o.operators import causal_attention
from o2o.operators.attention import writes_cache
from o2o.operators.facts import facts_of
from o2o.rewriting.builder import Builder
from o2o.rewriting.common_subexpression_elimination import eliminate_common_subexpressions
from o2o.rewriting.dead_code_elimination import inner_graphs, remove_dead_constants, remove_dead_nodes
from o2o.rewriting.grouped_query import fold_grouped_queries
from o2o.rewriting.rewire import replace_output


def lower(model: Model, flash: Flash = None) -> Model:
    """`model` as TFLite, changed in place and returned. Raises ModelError for what TFLite cannot say.

    flash: whether attention is computed in blocks, where no mask is given.
    """
    lowerings: dict[tuple[str, str], Callable[[Model, ir.Graph, ir.Node], None]] = {
        (DOMAIN, "RMS_NORM"): lower_rms_norm,
        (DOMAIN, "ROPE"): _rope,
        (DOMAIN, "ATTENTION"): partial(lower_attention, flash=flash),
        (CUSTOM_DOMAIN, causal_attention.NAME): partial(lower_causal_attention, flash=flash),
    }
    inner = {inner for graph in model.graphs for node in graph for inner in inner_graphs(node)}
    for graph in model.graphs:
        for node in list(graph):
            lowering = lowerings.get((node.domain, node.op_type))
            if lowering is not None:
                _check(model, graph, node)
                if writes_cache(node) and graph in inner:
                    raise ModelError(
                        f"{called(model, graph, node)} writes caches in a graph that is run by another"
                    )
                lowering(model, graph, node)
                graph.remove(node, safe=True)
        remove_dead_nodes(graph)
        fold_grouped_queries(model, graph)
        eliminate_common_subexpressions(model, graph)
        remove_dead_nodes(graph)
        remove_dead_constants(graph)
        for node in graph:
            if node.domain == CUSTOM_DOMAIN:
                continue
            if not is_registered(node.op_type):
                raise ModelError(f"LiteRT has no operator {called(model, graph, node)}")
            node.version = max(node.version or 1, minimum_version(node))
    convert(model, "tflite")
    return model


def _check(model: Model, graph: ir.Graph, node: ir.Node) -> None:
    """Raises ModelError for operands that what is built here would not compute with."""
    facts = facts_of(node)
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        position = index == facts.position and value.dtype in (
            ir.DataType.INT32,
            ir.DataType.INT64,
        )
        if index in facts.weights and is_constant(value) and is_quantized(value):
            continue  # FULLY_CONNECTED computes with it as it is
        if is_quantized(value) or not (value.dtype == ir.DataType.FLOAT or position):
            raise ModelError(f"{called(model, graph, node)}: {value.name} is {value.dtype}, not float32")
        if is_dynamic(value):
            raise ModelError(f"{called(model, graph, node)}: {value.name} has no fixed shape")


def _rope(model: Model, graph: ir.Graph, node: ir.Node) -> None:
    x, sin, cos = node.inputs
    old = node.outputs[0]
    if attribute(node, "mode", 0) != 0:
        raise ModelError(f"ROPE {old.name} rotates neighbours (GPT_J): only GPT_NEOX can be lowered")
    assert x is not None
    assert sin is not None
    assert cos is not None
    replace_output(model, old, rotate(Builder(graph, before=node, prefix=f"{old.name}/"), x, cos, sin))
