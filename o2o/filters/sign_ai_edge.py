"""`sign.ai_edge.py`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
from o2o.signatures import Classified, buckets_of, capacity_of, decode_of, prefills_of

if TYPE_CHECKING:
    from o2o.check.interface import Expected, Tensors

CACHES = {"key": "kv_cache_k_{}", "value": "kv_cache_v_{}"}
INPUT_ROLES = ("tokens", "position", "key_cache", "value_cache")


@dataclass(eq=False)
class Entry:
    """A signature's inputs and outputs by role; caches by slot (`key` or `value`, layer)."""

    signature: Signature
    tokens: ir.Value
    position: ir.Value
    caches: dict[tuple[str, int], ir.Value]
    logits: ir.Value | None

    @property
    def length(self) -> int:
        """T."""
        return shape_of(self.tokens)[-1]


class SignAiEdge(Filter):
    """Give a language model the signatures of AI Edge's generative models.

        prefill_64: input_ids [1,64]        =>    prefill: tokens [1,64]             int32
                    cache_position [1]                     input_pos [64]            int32
                    past_key_0 [1,K,S,H]                   kv_cache_k_0 [1,S,K,H]
                    --                                     --
                    logits, present_key_0                  kv_cache_k_0 [1,S,K,H]
        decode:     logits, present_key_0         decode:  logits [1,1,V], kv_cache_k_0

    Tensors are identified by their roles in the contract, not by their names. The decode signature
    becomes `decode`, and its buckets become `decode_256`, `decode_512`, ... by their capacity. A single
    prefill becomes `prefill`; several become `prefill_64`, `prefill_128`, ... by their number of tokens.
    Prefills give no logits, and operators that only logits need are removed.
    `input_pos` must count up from its first element; only that element is read. A cache has the same name as
    input and as output.
    Refused: a model without a contract; inputs that have no place in the interface; a prefill without caches;
    Circle with ATTENTION that updates caches in place (run lower.litert.py first).
    """

    name = "sign.ai_edge.py"
    purpose = "Inputs and outputs"
    usage_example = "lower.litert.py < model.circle | sign.ai_edge.py > model.tflite"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--output_logits_on_prefill", action="store_true", help="keep the logits [1,T,V] of prefills"
        )

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        entries = {signature.name: _entry(model, signature) for signature in model.signatures}
        classified = _classify(model, entries)
        decode, prefills, buckets = classified.decode, classified.prefills, classified.buckets
        assert decode is not None
        without = [entry.signature.name for entry in prefills if entry.logits is None]
        if args.output_logits_on_prefill and without:
            raise ModelError(
                f"no logits output in {listed(without)}: "
                f"--output_logits_on_prefill needs a model whose prefills return logits"
            )
        signed = _new_names(decode, prefills, buckets)
        for name, entry in signed.items():
            entry.signature.name = name
            _sign(model, entry, entry not in prefills or args.output_logits_on_prefill)
        model.signatures = [entry.signature for entry in signed.values()]
        for graph in model.graphs:
            remove_dead_nodes(graph)
            remove_dead_constants(graph)
        shapes = dict.fromkeys(str(list(shape_of(cache))) for cache in decode.caches.values())
        self.log(f"{listed(list(signed))}: {counted(len(decode.caches), 'cache')} of {listed([*shapes], 3)}")

    def expected(self, models: Sequence[Model], args: argparse.Namespace) -> Expected:
        from o2o.check.interface import ExpectedSignature

        (model,) = models
        prefills, decode = prefills_of(model), decode_of(model)
        named = [("prefill", prefills[0])] if len(prefills) == 1 else []
        if len(prefills) > 1:
            named = [(f"prefill_{_number_of_tokens(signature)}", signature) for signature in prefills]
        names = {s.name: name for name, s in named} | {decode.name: "decode"}
        names |= {bucket.name: f"decode_{capacity_of(bucket)}" for bucket in buckets_of(model)}
        expected = []
        for source, name in names.items():
            signature = next(s for s in model.signatures if s.name == source)
            inputs = _expected_tensors(signature.inputs, _number_of_tokens(signature))
            outputs = _expected_tensors(signature.outputs, _number_of_tokens(signature))
            if name.startswith("prefill") and not args.output_logits_on_prefill:
                outputs.pop("logits", None)
            expected.append(ExpectedSignature(name, 0, source, inputs, outputs, is_ordered=False))
        return expected


def _number_of_tokens(signature: Signature) -> int:
    tokens = (v for v in signature.inputs.values() if (role := role_of(v)) and role.kind == "tokens")
    return max((shape_of(value)[-1] for value in tokens), default=1)


def _expected_tensors(values: Mapping[str, ir.Value], tokens: int) -> Tensors:
    """The inputs or outputs of the interface that derive from `values`, for `--check`."""
    from o2o.check.interface import ExpectedTensor

    expected: Tensors = {}
    for name, value in values.items():
        role = role_of(value)
        if role is None:
            continue
        shape = shape_of(value)
        if role.kind == "tokens":
            expected["tokens"] = ExpectedTensor(name, dtype=np.dtype(np.int32))
        elif role.kind == "position":
            expected["input_pos"] = ExpectedTensor(name, (tokens,), np.dtype(np.int32))
        elif role.kind == "logits":
            expected["logits"] = ExpectedTensor(name)
        else:
            kind = "k" if role.kind.startswith("key") else "v"
            transposed = tuple(shape[(role.layout or "BTNH").index(axis)] for axis in "BTNH")
            expected[f"kv_cache_{kind}_{role.layer}"] = ExpectedTensor(name, transposed)
    return expected


def _entry(model: Model, signature: Signature) -> Entry:
    """The inputs and outputs of `signature` by role. Raises ModelError for one that the interface lacks."""
    where, graph = signature.name, signature.graph
    if sum(other.graph is graph for other in model.signatures) > 1:
        raise ModelError(f"{where} shares its graph with another signature: each needs a graph of its own")
    inputs = _by_role(where, "input", graph.inputs)
    outputs = _by_role(where, "output", graph.outputs)
    for role, value in inputs.items():
        if role.kind not in INPUT_ROLES:
            raise ModelError(f"{where}: the interface has no input for {value.name}, which is a {role.kind}")
    tokens, position = inputs.get(Role("tokens")), inputs.get(Role("position"))
    if tokens is None or len(shape_of(tokens)) != 2 or shape_of(tokens)[0] != 1:
        actual = f"tokens {list(shape_of(tokens))}, not [1, T]" if tokens is not None else "no tokens"
        raise ModelError(f"{where} takes {actual}")
    caches = {role.slot: value for role, value in inputs.items() if role.is_cache}
    if position is None or not caches:
        missing = "caches" if position is not None else "position"
        raise ModelError(
            f"{where} takes no {missing}: export it with --prefill-lengths, to run at any position"
        )
    if shape_of(position) != (shape_of(tokens)[1],) and np.prod(shape_of(position)) != 1:
        raise ModelError(
            f"{where}: its position {position.name} has shape {list(shape_of(position))}, not [1] or [T]"
        )
    rows = {role.slot: value for role, value in outputs.items() if role.is_rows}
    for slot, cache in caches.items():
        updated = rows.get(slot)
        if updated is None or sorted(shape_of(updated)) != sorted(shape_of(cache)):
            raise ModelError(
                f"{where} does not return the updated cache {cache.name}: run lower.litert.py first"
            )
    layers = {layer for _, layer in caches}
    if layers != set(range(len(layers))) or len(caches) != 2 * len(layers):
        raise ModelError(
            f"{where}: its caches are not one key and one value cache for each of the layers 0, 1, ..."
        )
    return Entry(signature, tokens, position, caches, outputs.get(Role("logits")))


def _by_role(where: str, io: str, values: Iterable[ir.Value]) -> dict[Role, ir.Value]:
    """The values by kind and layer. Raises ModelError if a value has no role or two have the same."""
    by_role: dict[Role, ir.Value] = {}
    for value in values:
        role = role_of(value)
        if role is None:
            raise ModelError(f"{where}: the {io} {value.name} has no role in the o2o.contract")
        key = Role(role.kind, role.layer)
        if key in by_role:
            raise ModelError(f"{where}: {by_role[key].name} and {value.name} have the same role {role.kind}")
        by_role[key] = value
    return by_role


def _classify(model: Model, entries: dict[str, Entry]) -> Classified[Entry]:
    """The entries by purpose (`o2o.signatures`). Raises ModelError if the interface has no place for one."""
    decode = entries[decode_of(model).name]
    prefills = [entries[signature.name] for signature in prefills_of(model)]
    buckets = [entries[signature.name] for signature in buckets_of(model)]
    if decode.logits is None:
        raise ModelError(f"{decode.signature.name} gives no logits: pass the model that has them")
    if not prefills:
        raise ModelError("there is no prefill: export with distinct --prefill-lengths")
    if prefills[0].length == 1:
        raise ModelError(
            f"{prefills[0].signature.name} reads one token, as {decode.signature.name} does: remove it"
        )
    if len({entry.length for entry in prefills}) < len(prefills):
        raise ModelError("two prefills have the same length: export with distinct --prefill-lengths")
    if len({capacity_of(entry.signature) for entry in buckets}) < len(buckets):
        raise ModelError("two buckets have the same capacity: leave one of them out")
    return Classified(decode, prefills, buckets)


def _new_names(decode: Entry, prefills: list[Entry], buckets: list[Entry]) -> dict[str, Entry]:
    """The signatures by their names in the interface, in order."""
    names = {"prefill" if len(prefills) == 1 else f"prefill_{entry.length}": entry for entry in prefills}
    return names | {"decode": decode} | {f"decode_{capacity_of(e.signature)}": e for e in buckets}


def _sign(model: Model, entry: Entry, with_logits: bool) -> None:
    """Give the graph of `entry` the inputs and outputs of the interface, and their names."""
    graph, signature = entry.signature.graph, entry.signature
    slots = sorted(entry.caches, key=lambda slot: (slot[1], slot[0]))
    transpose_caches(model, graph, "BTNH")
    outputs = _by_role(signature.name, "output", graph.outputs)  # transposing may have replaced some
    rows = {role.slot: value for role, value in outputs.items() if role.is_rows}
    for value in (entry.tokens, entry.position):
        if value.dtype != INT32:
            downcast_input(model, graph, value)
    input_names = {entry.tokens: "tokens", _position_of_each_token(model, entry): "input_pos"}
    input_names |= {entry.caches[kind, layer]: CACHES[kind].format(layer) for kind, layer in slots}
    output_names = {rows[kind, layer]: CACHES[kind].format(layer) for kind, layer in slots}
    if entry.logits is not None and with_logits:
        output_names[outputs[Role("logits")]] = "logits"
    graph.inputs[:] = list(input_names)
    graph.outputs[:] = list(output_names)
    signature.inputs = {name: value for value, name in input_names.items()}
    signature.outputs = {name: value for value, name in output_names.items()}
    # Tensors get their public names too. An input and an output may share one; two tensors may not.
    new_names = {value.name: name for value, name in input_names.items()}
    rename_io(model, graph, "input", new_names.get)
    new_names = {value.name: f"{name}_out" for value, name in output_names.items() if name != "logits"}
    public = signature.outputs
    signature.outputs = {}
    rename_io(model, graph, "output", new_names.get)
    signature.outputs = public


def _position_of_each_token(model: Model, entry: Entry) -> ir.Value:
    """Make the position an input [T]. The graph reads its first element only."""
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
