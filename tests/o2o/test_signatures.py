"""Which signature is decode, which are prefills, which are buckets."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import pytest

from o2o.contract import Role, contract_of
from o2o.errors import ModelError
from o2o.model import Model, Signature
from o2o.signatures import buckets_of, capacity_of, classify_contract, decode_of, find_decode, prefills_of
from tests.o2o.graphs import FLOAT, INT32


def signature(
    name: str,
    tokens: int | None = 1,
    *,
    capacity: int | None = 8,
    logits: bool = True,
    layout: str | None = "BNTH",
) -> Signature:
    """A signature of an empty graph: a capacity of None stands for no caches, tokens of None for no ids."""

    def value(name: str, shape: Sequence[int], role: Role, dtype: ir.DataType = FLOAT) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        value.meta["role"] = role
        return value

    inputs, outputs = [], []
    if tokens is not None:
        inputs.append(value("input_ids", [1, tokens], Role("tokens"), INT32))
    if capacity is not None:
        inputs.append(value("past_key_0", [1, 2, capacity, 3], Role("key_cache", 0, layout)))  # type: ignore[arg-type]
    if logits:
        outputs.append(value("logits", [1, tokens or 1, 11], Role("logits")))
    graph = ir.Graph(inputs, outputs, nodes=[], name=name)
    return Signature(name, graph, {v.name or "": v for v in inputs}, {v.name or "": v for v in outputs})


def model_of(*signatures: Signature) -> Model:
    return Model("circle", [one.graph for one in signatures], list(signatures))


def names(model: Model) -> tuple[str | None, list[str], list[str]]:
    decode = find_decode(model)
    return (
        decode.name if decode is not None else None,
        [one.name for one in prefills_of(model)],
        [one.name for one in buckets_of(model)],
    )


def test_prefills_are_sorted_by_their_tokens() -> None:
    model = model_of(signature("long", 64), signature("short", 4, capacity=None), signature("step"))
    assert names(model) == ("step", ["short", "long"], [])


def test_buckets_are_sorted_by_capacity_and_names_do_not_matter() -> None:
    model = model_of(signature("a", capacity=16), signature("b", capacity=64), signature("c", capacity=8))
    assert names(model) == ("b", [], ["c", "a"])
    assert [capacity_of(one) for one in (decode_of(model), *buckets_of(model))] == [64, 8, 16]


def test_only_prefill() -> None:
    model = model_of(signature("decode", 4))
    assert names(model) == (None, ["decode"], [])
    with pytest.raises(ModelError, match="no decode signature: exactly one of 'decode' must"):
        decode_of(model)


def test_ai_edge_signatures() -> None:
    """Prefills give no logits and all take the whole cache, one of them for a single token."""
    prefills = [signature(f"prefill_{n}", n, logits=False, layout="BTNH") for n in (128, 1)]
    model = model_of(*prefills, signature("decode", layout="BTNH"))
    assert names(model) == ("decode", ["prefill_1", "prefill_128"], [])


def test_a_prefill_of_one_token_does_what_decode_does() -> None:
    model = model_of(signature("prefill_1"), signature("decode"), signature("decode_4", capacity=4))
    assert names(model) == ("decode", ["prefill_1"], ["decode_4"])


def test_a_prefill_of_one_token_without_caches() -> None:
    model = model_of(signature("prefill", capacity=None), signature("decode"))
    assert names(model) == ("decode", ["prefill"], [])


def test_equal_signatures_of_one_token_are_ambiguous() -> None:
    model = model_of(signature("a"), signature("b"))
    assert names(model) == (None, ["a", "b"], [])


def test_a_graph_without_ids_reads_one_token() -> None:
    model = model_of(signature("layer", None, logits=False))
    assert names(model) == ("layer", [], [])


def test_caches_without_a_layout_have_no_known_capacity() -> None:
    model = model_of(signature("decode", layout=None))
    assert names(model) == ("decode", [], [])
    assert capacity_of(decode_of(model)) == 0


def test_a_model_without_roles_has_none() -> None:
    graph = ir.Graph([], [], nodes=[], name="main")
    assert names(Model("circle", [graph], [Signature("main", graph, {}, {})])) == (None, [], [])


def test_a_contract_is_classified_by_the_same_rule() -> None:
    model = model_of(signature("a", 4), signature("b", capacity=16), signature("c"))
    classified = classify_contract(contract_of(model)["signatures"])
    assert (classified.decode, classified.prefills, classified.buckets) == ("b", ["a"], ["c"])
