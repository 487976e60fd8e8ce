"""`sign.ai_edge.py`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from o2o.cli.text import counted, listed
from o2o.contract import Role, role_of
from o2o.errors import ModelError
from o2o.filters.base import Filter
from o2o.model import Model, Signature, shape_of
from o2o.rewriting.builder import Builder
from o2o.rewriting.cache_layout import transpose_caches
from o2o.rewriting.dead_code_elimination import remove_dead_constants, remove_dead_nodes
from o2o.rewriting.downcast_inputs import INT32, downcast_input
from o2o.rewriting.rename_io import rename_io

CACHES = {"key": "kv_cache_k_{}", "value": "kv_cache_v_{}"}
INPUT_ROLES = ("tokens", "position", "key_cache", "value_cache")


@dataclass
class Entry:
    """The inputs and outputs of a signature by role; caches by (kind, layer)."""

    signature: Signature
    tokens: ir.Value
    position: ir.Value
    caches: dict[tuple[str, int], ir.Value]
    logits: ir.Value | None

    @property
    def length(self) -> int:
        return shape_of(self.tokens)[-1]


class SignAiEdge(Filter):
    """Rename signatures, inputs and outputs to those of AI Edge's generative models.

        prefill_64: input_ids [1,64]        =>    prefill: tokens [1,64]             int32
                    cache_position [1]                     input_pos [64]            int32
                    past_key_0 [1,K,S,H]                   kv_cache_k_0 [1,S,K,H]
                    --                                     --
                    logits, present_key_0                  kv_cache_k_0 [1,S,K,H]
        decode:     logits, present_key_0         decode:  logits [1,1,V], kv_cache_k_0

    Tensors are identified by their roles in the contract. The signature that reads one token is `decode`.
    One other is `prefill`; several are `prefill_64`, `prefill_128`, ... by their lengths. Prefills return
    no logits, and the operators that only logits need are removed. Only the first element of `input_pos` is
    read: the others must count up from it. A cache has the same name as an input and as an output.
    Refused: a model without a contract, inputs that the interface lacks, and a prefill without caches.
    Circle whose ATTENTION does not return its caches needs lower.litert.py first.
    """

    name = "sign.ai_edge.py"
    usage_example = "lower.litert.py < model.circle | sign.ai_edge.py > model.tflite"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--output_logits_on_prefill", action="store_true", help="let prefills return logits [1,T,V]"
        )

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        entries = [_entry(model, signature) for signature in model.signatures]
        decode, prefills = _named(entries)
        if args.output_logits_on_prefill and (mute := [e.signature.name for e in prefills if not e.logits]):
            raise ModelError(f"{listed(mute)}: there are no logits to give: sign the model that has them")
        for entry in entries:
            _sign(model, entry, entry is decode or args.output_logits_on_prefill)
        model.signatures = [entry.signature for entry in (*prefills, decode)]
        for graph in model.graphs:
            remove_dead_nodes(graph)
            remove_dead_constants(graph)
        shape = list(shape_of(next(iter(decode.caches.values()))))
        names = listed([entry.signature.name for entry in (*prefills, decode)])
        self.log(f"{names}: {counted(len(decode.caches), 'cache')} of {shape}")


def _entry(model: Model, signature: Signature) -> Entry:
    """The ends of `signature` by role. Raises ModelError for one that the interface cannot express."""
    where, graph = signature.name, signature.graph
    if sum(other.graph is graph for other in model.signatures) > 1:
        raise ModelError(f"{where} shares its graph with another signature: merge models that have their own")
    ins = _by_role(where, "input", graph.inputs)
    outs = _by_role(where, "output", graph.outputs)
    for (kind, _), value in ins.items():
        if kind not in INPUT_ROLES:
            raise ModelError(f"{where}: the interface has no place for the input {value.name}, a {kind}")
    tokens, position = ins.get(("tokens", 0)), ins.get(("position", 0))
    if tokens is None or len(shape_of(tokens)) != 2 or shape_of(tokens)[0] != 1:
        problem = (
            f"takes tokens {list(shape_of(tokens))}, not [1, T]" if tokens is not None else "takes no tokens"
        )
        raise ModelError(f"{where} {problem}")
    caches = {
        (kind.removesuffix("_cache"), layer): v for (kind, layer), v in ins.items() if kind.endswith("cache")
    }
    if position is None or not caches:
        raise ModelError(
            f"{where} takes no {'caches' if position else 'position'}: export it to go on at any position "
            "(--prefill-lengths)"
        )
    if shape_of(position) != (shape_of(tokens)[1],) and np.prod(shape_of(position)) != 1:
        raise ModelError(f"{where}: {position.name} {list(shape_of(position))} is no position")
    for (kind, layer), cache in caches.items():
        given = outs.get((kind, layer))
        if given is None or sorted(shape_of(given)) != sorted(shape_of(cache)):
            raise ModelError(
                f"{where} does not give {cache.name} out again, with its new rows: lower.litert.py makes it"
            )
    layers = {layer for _, layer in caches}
    if layers != set(range(len(layers))) or len(caches) != 2 * len(layers):
        raise ModelError(f"{where}: its layers of caches are not 0, 1, ... with a key and a value each")
    return Entry(signature, tokens, position, caches, outs.get(("logits", 0)))


def _by_role(where: str, end: str, values: Iterable[ir.Value]) -> dict[tuple[str, int], ir.Value]:
    by_role: dict[tuple[str, int], ir.Value] = {}
    for value in values:
        role = role_of(value)
        if role is None:
            raise ModelError(f"{where}: the {end} {value.name} has no role in the contract")
        key = (role.kind, role.layer or 0)
        if key in by_role:
            raise ModelError(f"{where}: {by_role[key].name} and {value.name} are both its {role.kind}")
        by_role[key] = value
    return by_role


def _named(entries: list[Entry]) -> tuple[Entry, list[Entry]]:
    """Decode and the prefills, shortest first, called as the interface calls them."""
    ones = [entry for entry in entries if entry.length == 1]
    if len(ones) != 1 or ones[0].logits is None:
        names = listed([entry.signature.name for entry in ones]) or "none"
        raise ModelError(f"exactly one signature must read one token and return logits; there are: {names}")
    prefills = sorted((entry for entry in entries if entry.length > 1), key=lambda entry: entry.length)
    lengths = {entry.length for entry in prefills}
    if not prefills or len(lengths) < len(prefills):
        what = "two prefills read equally many tokens" if prefills else "there is no prefill"
        raise ModelError(f"{what}: export and merge others")
    ones[0].signature.name = "decode"
    for entry in prefills:
        entry.signature.name = "prefill" if len(prefills) == 1 else f"prefill_{entry.length}"
    return ones[0], prefills


def _sign(model: Model, entry: Entry, with_logits: bool) -> None:
    """Rename and reorder the inputs and outputs of `entry` to those of the interface."""
    graph, signature = entry.signature.graph, entry.signature
    slots = sorted(entry.caches, key=lambda slot: (slot[1], slot[0]))
    transpose_caches(model, graph, "BTNH")
    outputs = _by_role(signature.name, "output", graph.outputs)  # which turning may have replaced
    for value in (entry.tokens, entry.position):
        if value.dtype != INT32:
            downcast_input(model, graph, value)
    names = {entry.tokens: "tokens", _spread(model, entry): "input_pos"}
    names |= {entry.caches[kind, layer]: CACHES[kind].format(layer) for kind, layer in slots}
    given = {outputs[kind, layer]: CACHES[kind].format(layer) for kind, layer in slots}
    if entry.logits is not None and with_logits:
        given[outputs["logits", 0]] = "logits"
    graph.inputs[:] = list(names)
    graph.outputs[:] = list(given)
    signature.inputs = {name: value for value, name in names.items()}
    signature.outputs = {name: value for value, name in given.items()}
    # Tensors are called after their public names, which an input and an output may share, unlike tensors.
    old = {value.name: name for value, name in names.items()}
    rename_io(model, graph, "input", old.get)
    old = {value.name: f"{name}_out" for value, name in given.items() if name != "logits"}
    public = signature.outputs
    signature.outputs = {}
    rename_io(model, graph, "output", old.get)
    signature.outputs = public


def _spread(model: Model, entry: Entry) -> ir.Value:
    """The position of `entry` as an input for each token, of which the first counts."""
    graph, position, length = entry.signature.graph, entry.position, entry.length
    if shape_of(position) == (length,):
        return position
    first = next((node for node in graph if position in node.inputs), None)
    positions = ir.Value(name="input_pos", shape=ir.Shape([length]), type=ir.TensorType(INT32))
    positions.meta["role"] = Role("position")
    op = Builder(graph, before=first, prefix=f"{position.name}/")
    one = op.reshape(op.slice(positions, [0], [1], name="first"), shape_of(position))
    position.replace_all_uses_with(one)
    model.replace(position, positions)
    return positions


main = SignAiEdge.main
