"""Circle to Circle that onert 0.1.0 runs: one decode step on its `cpu` backend.

onert runs subgraph 0 only, has neither ATTENTION nor `o2o.attention`, and updates nothing in place. So the
model keeps its decode graph alone. That graph reads the KV caches and returns the new rows. The runtime then
writes them into the caches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from o2o.contract import role_of
from o2o.errors import ModelError
from o2o.formats.tensors import storage_key
from o2o.lower.onert.attention import check_attention, legalize_core_attentions
from o2o.lower.onert.dynamic_update_slice import legalize_dynamic_update_slice
from o2o.lower.onert.fully_connected import legalize_fully_connected
from o2o.lower.onert.lookup import legalize_dequantize, legalize_lookup
from o2o.lower.onert.outputs import copy_shared_outputs
from o2o.lower.onert.rms_norm import fuse_norms, legalize_rms_norm
from o2o.lower.onert.rope import legalize_rope
from o2o.lower.onert.split_v import legalize_split_v
from o2o.lower.onert.supported_ops import check_supported
from o2o.model import DOMAIN, Model, Signature, shape_of
from o2o.operators.attention import is_attention
from o2o.rewriting.attention.expand_attention import expand_attentions
from o2o.rewriting.attention.mask_rule import MaskRule
from o2o.rewriting.attention.proofs import Proofs
from o2o.rewriting.common_subexpression_elimination import eliminate_common_subexpressions
from o2o.rewriting.dead_code_elimination import remove_dead_constants, remove_dead_nodes
from o2o.rewriting.grouped_query import fold_grouped_queries
from o2o.rewriting.rewrite_rule import apply_rule
from o2o.signatures import decode_of

LIMIT = (1 << 31) - (1 << 20)
"""Bytes of constants that fit into a FlatBuffer together with the graph. onert crashes on data behind it."""

Legalization = Callable[[Model, ir.Graph, ir.Node], None]

_FIRST_PASS: dict[str, Legalization] = {
    "DYNAMIC_UPDATE_SLICE": legalize_dynamic_update_slice,
    "ROPE": legalize_rope,
    "SPLIT_V": legalize_split_v,
}
_SECOND_PASS: dict[str, Legalization] = {  # operators that the first pass may create
    "RMS_NORM": legalize_rms_norm,
    "EMBEDDING_LOOKUP": legalize_lookup,
    "GATHER": legalize_lookup,
    "DEQUANTIZE": legalize_dequantize,
    "FULLY_CONNECTED": legalize_fully_connected,
}


@dataclass
class Summary:
    """What `lower_to_onert` changed.

    Attributes:
        dropped: Names of the signatures that were removed.
        before: Number of operators of the decode graph before.
        after: Number of operators after.
    """

    dropped: list[str]
    before: int
    after: int


def lower_to_onert(model: Model) -> Summary:
    """Change `model`, in place, into one that onert runs.

    Args:
        model: A Circle model with roles attached (`o2o.contract`).

    Returns:
        The dropped signatures and the operator counts.

    Raises:
        ModelError: The model is TFLite, has no decode signature, or has an operator that onert lacks.
    """
    if model.format != "circle":
        raise ModelError("onert needs a Circle model: pass the model that lower.litert.py read")
    decode = decode_of(model)
    graph = decode.graph
    dropped = [signature.name for signature in model.signatures if signature is not decode]
    before = len(graph)
    model.graphs, model.signatures = [graph], [decode]
    for node in graph:
        if is_attention(node):
            check_attention(model, graph, node)
    expand_attentions(model, graph)
    eliminate_common_subexpressions(model, graph)  # layers share their position and are proven once
    apply_rule(model, graph, MaskRule(Proofs()))
    legalize_core_attentions(model, graph)
    for legalizations in (_FIRST_PASS, _SECOND_PASS):
        for node in list(graph):
            if node.graph is graph and node.domain == DOMAIN and node.op_type in legalizations:
                legalizations[node.op_type](model, graph, node)
        fuse_norms(model, graph)
        remove_dead_nodes(graph)
    fold_grouped_queries(model, graph)
    copy_shared_outputs(model, graph)
    eliminate_common_subexpressions(model, graph)
    copy_shared_outputs(model, graph)  # merging may have shared an output again
    remove_dead_nodes(graph)
    remove_dead_constants(graph)
    graph.meta["loose"] = []
    _order_inputs_and_outputs(decode)
    for node in graph:
        check_supported(model, graph, node)
    _check_outputs(model, graph)
    _check_size(graph)
    return Summary(dropped, before, len(graph))


def _order_inputs_and_outputs(decode: Signature) -> None:
    """Sort the signature's names in the order of the graph, as onert numbers them; roles come first."""
    graph = decode.graph
    graph.outputs[:] = sorted(graph.outputs, key=lambda value: role_of(value) is None)
    for values, order in ((decode.inputs, list(graph.inputs)), (decode.outputs, list(graph.outputs))):
        by_position = sorted(values.items(), key=lambda item: order.index(item[1]))
        values.clear()
        values.update(by_position)


def _check_outputs(model: Model, graph: ir.Graph) -> None:
    """Raise ModelError for a whole cache among the outputs: onert would copy it at every step."""
    for value in graph.outputs:
        role = role_of(value)
        if role is None or role.layout is None:
            continue
        if (count := shape_of(value)[role.layout.index("T")]) != 1:
            raise ModelError(
                f"{model.label(graph)} returns {count} rows of {value.name}, not the new row alone: fuse its "
                "attention with fuse.attention.py, or export with --cache static"
            )


def _check_size(graph: ir.Graph) -> None:
    constants = (value.const_value for value in graph.initializers.values())
    sizes = {storage_key(constant): constant.nbytes for constant in constants if constant is not None}
    if (size := sum(sizes.values())) > LIMIT:
        raise ModelError(
            f"the weights take {size / 1e9:.1f} GB, and onert reads no file over 2 GB: quantize them with "
            "quantize.weights.py --recipe dynamic_int8"
        )
