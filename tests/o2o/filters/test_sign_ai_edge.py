"""sign.ai_edge: the interface of AI Edge, by what tensors are."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from o2o import formats
from o2o.contract import Role, contract_of, role_of
from o2o.filters.fuse_attention import FuseAttention
from o2o.filters.merge_circles import MergeCircles
from o2o.lower.litert import lower_to_litert
from o2o.model import Model
from o2o.rewriting.cache_buckets import add_cache_buckets
from o2o.signatures import buckets_of, capacity_of, find_decode
from runtime_py.engines.litert.engine import LiteRtEngine
from runtime_py.model.contract import Contract
from tests import schemas
from tests.o2o.filters.conftest import Command
from tests.o2o.fused_graphs import Form, attention
from tests.o2o.graphs import INT32, Graph, interpreter, linear, operators
from tests.o2o.language_model_graphs import H, K, S, V, greedy_logits, language_model
from tests.tolerances import assert_close


def interfaces(model: Model) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """By signature: {name: (dtype, shape)} of inputs and outputs."""

    def described(values: dict[str, Any]) -> dict[str, Any]:
        return {name: (str(v.dtype.numpy()), list(v.shape.numpy())) for name, v in values.items()}

    return {s.name: (described(s.inputs), described(s.outputs)) for s in model.signatures}


CACHES = {f"kv_cache_{kind}_0": ("float32", [1, S, K, H]) for kind in "kv"}


def interface(length: int, logits: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    inputs = {"tokens": ("int32", [1, length]), "input_pos": ("int32", [length]), **CACHES}
    return inputs, CACHES | ({"logits": ("float32", [1, length, V])} if logits else {})


def lowered(*arguments: Any) -> Model:
    return formats.loads(formats.dumps(lower_to_litert(language_model(*arguments))))


@pytest.mark.parametrize("make", [language_model, lowered])
def test_the_interface(command: Command, make: Callable[[], Model]) -> None:
    """Of Circle and of TFLite."""
    after = command(make())
    assert interfaces(after) == {"prefill": interface(4, False), "decode": interface(1, True)}
    assert command.said == f"sign.ai_edge.py: prefill, decode: 2 caches of [1, {S}, {K}, {H}]\n"
    prefill, decode = (operators(Model("circle", [graph])) for graph in after.graphs)
    assert decode["FULLY_CONNECTED"] == 1
    assert not prefill["FULLY_CONNECTED"] + prefill["BATCH_MATMUL"] + prefill["LESS_EQUAL"]
    assert "head" not in after.graphs[0].initializers
    for graph in after.graphs:  # the caches are written where they lie, in their new layout
        for value in graph.outputs[:2]:
            node = value.producer()
            assert node is not None
            assert (node.op_type, node.inputs[0]) == (
                "DYNAMIC_UPDATE_SLICE",
                graph.inputs[2:][graph.outputs.index(value)],
            )


@pytest.mark.parametrize("make", [language_model, lowered])
@pytest.mark.parametrize("position", [0, 2, S - 4])
def test_the_same_numbers(command: Command, make: Callable[[], Model], position: int) -> None:
    after = command(make(), "--output_logits_on_prefill")
    run = {name: interpreter(formats.dumps(after)).get_signature_runner(name) for name in interfaces(after)}
    text = np.random.default_rng(0).integers(0, V, S).astype(np.int32)
    caches = {name: np.zeros([1, S, K, H], np.float32) for name in CACHES}
    for at in range(position):
        found = run["decode"](tokens=text[None, at : at + 1], input_pos=np.int32([at]), **caches)
        assert_close(found["logits"][0, 0], greedy_logits(text[: at + 1]))
        caches = {name: found[name] for name in caches}
    piece = slice(position, position + 4)
    positions = np.arange(position, position + 4, dtype=np.int32)
    found = run["prefill"](tokens=text[None, piece], input_pos=positions, **caches)
    for row, at in enumerate(positions):
        expected = greedy_logits(text[: at + 1])
        assert_close(found["logits"][0, row], expected)
    # Only the first position is looked at.
    again = run["prefill"](tokens=text[None, piece], input_pos=np.int32([position, 0, 0, 0]), **caches)
    np.testing.assert_array_equal(again["logits"], found["logits"])


def test_several_prefills_are_called_by_their_lengths_in_order(command: Command) -> None:
    after = command(lowered([1, 6, 3], ["step", "long", "short"]))
    assert list(interfaces(after)) == ["prefill_3", "prefill_6", "decode"]
    assert [next(after.signatures_of(graph)).name for graph in after.graphs] == [
        "decode",
        "prefill_6",
        "prefill_3",
    ]


def test_the_contract_stays_true(command: Command) -> None:
    after = command(lowered())
    prefill = contract_of(after)["signatures"]["prefill"]
    assert [entry["role"] for entry in prefill["inputs"]] == [
        "tokens",
        "position",
        "key_cache",
        "value_cache",
    ]
    assert [(entry["role"], entry["layout"]) for entry in prefill["outputs"]] == [
        ("key", "BTNH"),
        ("value", "BTNH"),
    ]
    contract = Contract.parse(contract_of(after))
    assert (contract.capacity, contract.vocab_size) == (S, V)
    engine = LiteRtEngine(formats.dumps(after), contract)
    session = engine.open_session()
    text = [3, 1, 4, 1, 5, 9, 2]
    for length in range(1, len(text) + 1):
        found = session.prefill(text[:length])
        assert_close(found, greedy_logits(text[:length]))
    engine.close()


def test_again_is_the_same(command: Command) -> None:
    once = command(lowered())
    twice = command(once)
    once.history, twice.history = [], []
    assert formats.dumps(twice) == formats.dumps(once)


def test_check_pairs_tensors_by_their_roles(command: Command) -> None:
    command(lowered(), "--check")
    assert "5 outputs the same, within 0.0e+00" in command.said  # 2 + 3


@pytest.mark.parametrize("fused", [True, False])
def test_exported(command: Command, exported_model: Callable[[str, str], Path], fused: bool) -> None:
    """As it comes, and with ATTENTION, which gives its caches out once it is lowered."""
    models = [formats.load(exported_model("grouped", form)) for form in ("prefill_8", "static")]
    for model in models if fused else ():
        FuseAttention().apply(model, argparse.Namespace(explain=False, assume_full_cache=None, core=False))
    merged = MergeCircles().merged(models, ["prefill_8.circle", "decode.circle"])
    assert bool(operators(merged)["ATTENTION"]) == fused
    after = command(lower_to_litert(merged), "--check")
    assert list(interfaces(after)) == ["prefill", "decode"]
    assert "13 outputs the same, within 0.0e+00" in command.said  # 6 caches each, and logits


def test_buckets(command: Command, exported_model: Callable[[str, str], Path]) -> None:
    """A model with buckets keeps them, named as `bucket.kvcache.py` names them."""
    models = [formats.load(exported_model("grouped", form)) for form in ("prefill_8", "static")]
    merged = lower_to_litert(MergeCircles().merged(models, ["prefill_8.circle", "decode.circle"]))
    decode = find_decode(merged)
    assert decode is not None
    capacity = capacity_of(decode)
    add_cache_buckets(merged, decode, [8, 16])
    for signature, name in zip(buckets_of(merged), ("small", "medium"), strict=True):
        signature.name = name
    after = command(merged)
    assert list(interfaces(after)) == ["prefill", "decode", "decode_8", "decode_16"]
    rows = {s.name: s.inputs["kv_cache_k_0"].shape.numpy()[1] for s in after.signatures}  # type: ignore[union-attr]
    assert rows == {"prefill": capacity, "decode": capacity, "decode_8": 8, "decode_16": 16}
    assert all("logits" in s.outputs for s in after.signatures if s.name != "prefill")
    assert Contract.parse(contract_of(after)).capacity == capacity


def spoilt(change: Callable[[Model], None]) -> Model:
    model = language_model()
    change(model)
    return model


def stranger(model: Model) -> None:
    graph = Graph("prefill")
    graph.ir = model.graphs[0]
    mask = graph.input("mask", [1, 4])
    mask.meta["role"] = Role("logits")
    model.signatures[0].inputs["mask"] = mask


def forget(index: int) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        del model.graphs[0].inputs[index].meta["role"]

    return change


def without_output(model: Model) -> None:
    value = model.graphs[1].outputs.pop()
    model.signatures[1].outputs = {k: v for k, v in model.signatures[1].outputs.items() if v is not value}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (linear, "the input x has no role"),
        (lambda: spoilt(forget(0)), "prefill_4: the input input_ids has no role"),
        (
            lambda: spoilt(without_output),
            "decode does not return the updated cache past_value_0: run lower",
        ),
        (lambda: attention(Form(layout="BNTH")), "has no role in the o2o.contract"),
        (lambda: language_model([4, 4, 1], ["a", "b", "c"]), "two prefills have the same length"),
        (lambda: language_model([1], ["decode"]), "there is no prefill"),
        (
            lambda: language_model([4, 1, 1], ["a", "decode", "c"]),
            "c reads one token, as decode does: remove it",
        ),
        (
            lambda: language_model([4], ["prefill"]),
            "no decode signature: exactly one of 'prefill' must read one token",
        ),
        (
            lambda: language_model([4, 1, 1], ["a", "b", "c"]),
            "no decode signature: exactly one of 'a', 'b', 'c' must read one token",
        ),
    ],
)
def test_refusals(command: Command, make: Callable[[], Model], message: str) -> None:
    code, actual = command.refusal(make())
    assert code == 1
    assert re.search(message, actual), actual


def test_an_input_with_the_role_of_an_output_is_refused(command: Command) -> None:
    with schemas.unchecked():
        code, message = command.refusal(spoilt(stranger))
    assert code == 1
    assert "prefill_4: the interface has no input for mask, which is a logits" in message


def test_logits_that_are_gone_are_not_promised(command: Command) -> None:
    signed = command(lowered())
    code, message = command.refusal(signed, "--output_logits_on_prefill")
    assert code == 1
    assert message.startswith("no logits output in prefill: --output_logits_on_prefill needs a model")


def test_prefill_without_caches_is_refused(
    command: Command, exported_model: Callable[[str, str], Path]
) -> None:
    code, message = command.refusal(formats.load(exported_model("grouped", "prefill")))
    assert (code, message) == (
        1,
        "prefill takes no position: export it with --prefill-lengths, to run at any position",
    )


def test_dtypes(command: Command) -> None:
    after = command(lowered())
    assert {value.dtype for graph in after.graphs for value in graph.inputs[:2]} == {INT32}
    assert role_of(after.graphs[0].inputs[1]) == Role("position")
