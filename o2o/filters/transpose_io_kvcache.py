"""`transpose.io.kvcache.py`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import get_args

import onnx_ir as ir

from o2o.attention import Attention, is_attention, takes_as_cache
from o2o.contract import Layout, Role, role_of
from o2o.errors import ModelError, UsageError
from o2o.filters.base import Filter
from o2o.model import Model, shape_of
from o2o.rewriting.io import detach_input, detach_output
from o2o.rewriting.selectors import entry_graphs

SWAP = (0, 2, 1, 3)  # BNTH to BTNH, and back


class TransposeIoKvcache(Filter):
    """Give the key/value caches another layout: tokens before heads (BTNH), or heads before tokens (BNTH).

        past_key_0 [1,16,32,4] BNTH -- ATTENTION    =>   past_key_0 [1,32,16,4] BTNH -- ATTENTION
        past_key_0 BNTH -- CONCATENATION            =>   past_key_0 BTNH -- TRANSPOSE -- CONCATENATION
        ADD -- present_key_0 BNTH                   =>   ADD -- TRANSPOSE -- present_key_0 BTNH

    Every cache input and every key/value output that the contract tells, or that ATTENTION uses, in every
    graph. ATTENTION takes either layout (the contract says which); other users get a TRANSPOSE.
    Refused: a model in which no cache can be told from other inputs; caches quantised by channel.
    """

    name = "transpose.io.kvcache.py"
    usage_example = "transpose.io.kvcache.py < in.circle > out.circle"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--to", choices=get_args(Layout), default="BTNH", help="the layout (%(default)s)")

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        turned = seen = 0
        for graph in entry_graphs(model, None):
            caches = _caches(graph)
            for value, role in caches.items():
                seen += 1
                if role.layout == args.to:
                    continue
                _check(value)
                if value.is_graph_input():
                    _turn_input(graph, value)
                else:
                    value = detach_output(
                        model, graph, value, lambda op, inner: op.transpose(inner, SWAP, name="turned")
                    )
                value.meta["role"] = replace(role, layout=args.to)
                turned += 1
        if not seen:
            raise UsageError(
                "no input or output is a key/value cache: the model has no contract and no ATTENTION"
            )
        self.say(f"turned {turned} of {seen} key/value tensors to {args.to}")


def _caches(graph: ir.Graph) -> dict[ir.Value, Role]:
    """The cache inputs and key/value outputs of `graph`, with roles that say their layout."""
    found: dict[ir.Value, Role] = {}
    for node in graph:
        if is_attention(node):
            attention = Attention.of(node)
            layer = len(found) // 2
            for value, kind in ((attention.k_cache, "key_cache"), (attention.v_cache, "value_cache")):
                if value is not None:
                    if not value.is_graph_input():
                        raise ModelError(f"the cache {value.name} of {node.op_type} is no input")
                    role = role_of(value) or Role(kind, layer)  # type: ignore[arg-type]
                    found[value] = replace(role, layout=attention.layout)
    for value in (*graph.inputs, *graph.outputs):
        told = role_of(value)
        if told is not None and told.layout is not None:
            found[value] = told
    return found


def _check(value: ir.Value) -> None:
    if len(shape_of(value)) != 4:
        raise ModelError(f"the cache {value.name} has shape {list(shape_of(value))}, not four axes")
    quantization = value.meta.get("fields", {}).get("quantization")
    scale = getattr(quantization, "scale", None)
    if scale is not None and len(scale) > 1:
        raise ModelError(f"the cache {value.name} is quantised by channel")


def _turn_input(graph: ir.Graph, value: ir.Value) -> None:
    """Swap the axes of the input `value`; its users but ATTENTION see it as before."""
    others = [use for use in value.uses() if not takes_as_cache(use.node, use.idx)]
    attentions = [use for use in value.uses() if use not in others]
    old = shape_of(value)
    given_out = value.is_graph_output()
    if others or given_out:
        if given_out:
            raise ModelError(f"the cache {value.name} is also an output")
        op, inner = detach_input(graph, value)
    value.shape = ir.Shape([old[axis] for axis in SWAP])
    if (signature := value.meta.get("fields", {}).get("shapeSignature")) is not None:
        value.meta["fields"]["shapeSignature"] = signature[list(SWAP)]
    if others:
        inner.replace_all_uses_with(op.transpose(value, SWAP, name=f"{value.name}_turned"))
        for use in attentions:
            use.node.replace_input_with(use.idx, value)


main = TransposeIoKvcache.main
