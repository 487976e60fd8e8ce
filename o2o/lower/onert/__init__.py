"""Circle -> Circle as onert 0.1.0 runs it: one decode step on its `cpu` backend.

onert runs subgraph 0 alone, has no ATTENTION and updates nothing in place. So decode comes alone; it reads
its caches and gives out the new rows, which whoever runs it writes into them. What else onert lacks or gets
wrong is spelled otherwise here, or refused: each of these defects is measured by `tests/o2o/lower/onert`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import onnx_ir as ir

from o2o.contract import role_of
from o2o.errors import ModelError
from o2o.formats.tensors import storage_key
from o2o.lower.onert.attention import legalize_attention
from o2o.lower.onert.dynamic_update_slice import legalize_update
from o2o.lower.onert.fully_connected import legalize_fully_connected
from o2o.lower.onert.lookup import legalize_dequantize, legalize_lookup
from o2o.lower.onert.outputs import set_apart
from o2o.lower.onert.rms_norm import fuse_norms, legalize_rms_norm
from o2o.lower.onert.rope import legalize_rope
from o2o.lower.onert.split_v import legalize_split
from o2o.lower.onert.supported_ops import check
from o2o.model import DOMAIN, Model, Signature, shape_of
from o2o.rewriting.common_subexpression_elimination import eliminate_common_subexpressions
from o2o.rewriting.dead_code_elimination import remove_dead_constants, remove_dead_nodes
from o2o.rewriting.grouped_query import fold_grouped_queries

LIMIT = (1 << 31) - (1 << 20)
"""Bytes of constants that fit a FlatBuffer beside the graph: onert crashes on what lies behind one."""

_LEGAL: dict[str, Callable[[Model, ir.Graph, ir.Node], None]] = {
    "ATTENTION": legalize_attention,
    "DYNAMIC_UPDATE_SLICE": legalize_update,
    "ROPE": legalize_rope,
    "SPLIT_V": legalize_split,
}
_THEN: dict[str, Callable[[Model, ir.Graph, ir.Node], None]] = {  # what the former may have made
    "RMS_NORM": legalize_rms_norm,
    "EMBEDDING_LOOKUP": legalize_lookup,
    "GATHER": legalize_lookup,
    "DEQUANTIZE": legalize_dequantize,
    "FULLY_CONNECTED": legalize_fully_connected,
}


@dataclass
class Done:
    """What `legalize` did: the signatures that were left out, and how many operators were there and are."""

    dropped: list[str] = field(default_factory=list)
    before: int = 0
    after: int = 0


def legalize(model: Model) -> Done:
    """Make `model` one that onert runs, in place. Raises ModelError for what it could not, with the place."""
    decode = _decode(model)
    graph = decode.graph
    done = Done([s.name for s in model.signatures if s is not decode], before=len(graph))
    model.graphs, model.signatures = [graph], [decode]
    for passes in (_LEGAL, _THEN):
        for node in list(graph):
            if node.graph is graph and node.domain == DOMAIN and node.op_type in passes:
                passes[node.op_type](model, graph, node)
        fuse_norms(model, graph)
        remove_dead_nodes(graph)
    fold_grouped_queries(model, graph)
    set_apart(model, graph)
    eliminate_common_subexpressions(model, graph)
    set_apart(model, graph)  # what was merged into one that is given out
    remove_dead_nodes(graph)
    remove_dead_constants(graph)
    graph.meta["loose"] = []
    _order_ends(decode)
    for node in graph:
        check(model, graph, node)
    _check_ends(model, graph)
    _check_size(graph)
    done.after = len(graph)
    return done


def _decode(model: Model) -> Signature:
    """The signature that takes one token and caches; of several the one called so. Raises ModelError."""
    if model.format != "circle":
        raise ModelError("onert's own operators are Circle's: give the Circle model that this was made of")
    found = [s for s in model.signatures if _takes_a_token(s)]
    if len(found) > 1:
        found = [s for s in found if s.name == "decode"]
    if len(found) == 1:
        return found[0]
    names = ", ".join(repr(signature.name) for signature in model.signatures) or "none"
    raise ModelError(
        f"no signature of {names} is decode, which takes one token and caches that the o2o.contract tells: "
        "onert runs nothing else of a language model"
    )


def _takes_a_token(signature: Signature) -> bool:
    told = {role.kind: v for v in signature.inputs.values() if (role := role_of(v)) is not None}
    return "key_cache" in told and ("tokens" not in told or shape_of(told["tokens"]) == (1, 1))


def _order_ends(decode: Signature) -> None:
    """Let names come in the order in which onert numbers the ends, those first that have a role."""
    graph = decode.graph
    graph.outputs[:] = sorted(graph.outputs, key=lambda value: role_of(value) is None)
    for ends, order in ((decode.inputs, list(graph.inputs)), (decode.outputs, list(graph.outputs))):
        named = sorted(ends.items(), key=lambda item: order.index(item[1]))
        ends.clear()
        ends.update(named)


def _check_ends(model: Model, graph: ir.Graph) -> None:
    """Keys and values come out as rows: a whole cache would be copied at every step."""
    for value in graph.outputs:
        role = role_of(value)
        if role is None or role.layout is None:
            continue
        if (count := shape_of(value)[role.layout.index("T")]) != 1:
            raise ModelError(
                f"{model.label(graph)} gives {count} rows of {value.name}, not the new one alone: fuse its "
                "attention with fuse.attention.py, or export with --cache static"
            )


def _check_size(graph: ir.Graph) -> None:
    constants = (value.const_value for value in graph.initializers.values())
    sizes = {storage_key(constant): constant.nbytes for constant in constants if constant is not None}
    if (size := sum(sizes.values())) > LIMIT:
        raise ModelError(
            f"the weights take {size / 1e9:.1f} GB, and onert reads no file over 2 GB: quantise them with "
            "quantize.weights.py --recipe dynamic_int8"
        )
