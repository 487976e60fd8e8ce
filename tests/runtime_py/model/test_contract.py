"""Contracts: what they say of a model, and which are refused."""

from __future__ import annotations

import copy
import json

import pytest

from o2o.errors import ModelError
from runtime_py.model.contract import Contract
from tests.runtime_py.toy import Toy


def test_sizes_and_roles():
    contract = Contract.parse(Toy(prefill_length=5, capacity=8).contract)
    (prefill,) = contract.prefills
    assert (prefill.length, contract.capacity, contract.vocab_size) == (5, 8, 11)
    cache = contract.decode.caches["key", 0]
    assert (cache.name, cache.num_rows, cache.heads) == ("past_key_0", 8, (2, 3))
    assert prefill.cache_outputs["value", 0].shape == (1, 2, 5, 3)


def test_prefills_are_known_by_their_tokens_and_sorted():
    contract = Toy(cached_lengths=[4, 3], capacity=8).contract
    signatures = contract["signatures"]
    signatures["prefill_long"] = signatures.pop("prefill_4")
    prefills = Contract.parse(contract).prefills
    assert [(one.name, one.length) for one in prefills] == [
        ("prefill_3", 3),
        ("prefill_long", 4),
        ("prefill", 5),
    ]
    assert [bool(one.caches) for one in prefills] == [True, True, False]


def test_prefills_may_give_no_logits_and_take_a_position_for_each_token():
    contract = Contract.parse(Toy(prefill_length=0, cached_lengths=[4], ai_edge=True).contract)
    (prefill,) = contract.prefills
    assert not prefill.gives_logits
    assert contract.decode.gives_logits
    assert prefill.input("position").shape == (4,)


def test_prefill_alone_may_be_longer_than_the_caches():
    (prefill,) = Contract.parse(Toy(prefill_length=9, capacity=8).contract).prefills
    assert prefill.length == 9


def wrong(signature: str, end: str, index: int, **fields):
    def change(contract):
        contract["signatures"][signature][end][index].update(fields)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.clear(), "no o2o.contract"),
        (lambda c: c["signatures"].clear(), "no o2o.contract"),
        (lambda c: c["signatures"].pop("prefill"), "no signature 'prefill', only 'decode': merge"),
        (lambda c: c["signatures"].pop("decode"), "no signature 'decode'"),
        (lambda c: c["signatures"]["decode"].pop("inputs"), "damaged"),
        (lambda c: c["signatures"]["decode"]["outputs"].pop(0), "decode has no logits"),
        (lambda c: c["signatures"]["prefill"]["outputs"].pop(1), "layer 0: prefill's key"),
        (lambda c: c["signatures"]["decode"]["inputs"].pop(1), "decode has no position"),
        (
            lambda c: c["signatures"]["decode"]["inputs"].__delitem__(slice(2, None)),
            "decode takes no KV caches",
        ),
        (wrong("decode", "inputs", 0, role="mood"), "'input_ids' has the role 'mood'"),
        (wrong("decode", "inputs", 0, role=""), "'input_ids' has no role"),
        (wrong("decode", "inputs", 0, dtype=None), "damaged"),
        (wrong("decode", "inputs", 0, shape=None), "damaged"),
        (wrong("decode", "inputs", 0, shape=[1, 4]), r"tokens \[1, 4\], not one token"),
        (wrong("decode", "inputs", 2, layout="BTHW"), "with layout 'BTHW'"),
        (wrong("decode", "inputs", 2, shape=[1, 9, 2, 3]), r"differ in capacity, \[8, 9\]"),
        (wrong("decode", "inputs", 2, shape=[1, 8, 3, 3]), "does not fit"),
        (wrong("prefill", "outputs", 0, shape=[1, 1, 11]), r"logits \[1, 1, 11\]"),
        (wrong("prefill", "inputs", 0, shape=[5]), r"prefill takes tokens \[5\], not \[1, T\]"),
        (
            wrong("decode", "inputs", 1, shape=[3]),
            r"'cache_position' has shape \[3\], neither",
        ),
    ],
)
def test_contracts_that_cannot_be_run(change, message):
    contract = Toy().contract
    change(contract)
    with pytest.raises(ModelError, match=message):
        Contract.parse(contract)


def both(index: int, **fields):
    """Change a cache as it goes into and as it comes out of prefill_4."""

    def change(contract):
        for end, place in (("inputs", index), ("outputs", index - 1)):
            contract["signatures"]["prefill_4"][end][place].update(fields)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["signatures"].update(prefill_x=c["signatures"]["prefill_4"]),
            "prefill_4 and prefill_x both take 4 tokens: remove one of them",
        ),
        (
            both(2, shape=[1, 16, 2, 3]),
            "prefill_4 has caches of 16 positions, decode has 8: export them with the same --max-length",
        ),
        (both(2, shape=[1, 2, 8, 3], layout="BNTH"), r"prefill_4's 'past_key_0' .* BNTH .* is not decode's"),
        (both(2, dtype="float16"), r"prefill_4's 'past_key_0' .* float16 is not decode's"),
        (both(3, shape=[1, 8, 1, 6]), r"prefill_4's 'past_value_0' \[1, 8, 1, 6\] .* is not decode's"),
        (lambda c: c["signatures"]["prefill_4"]["inputs"].pop(1), "prefill_4 has no position"),
        (
            lambda c: c["signatures"]["prefill_4"]["inputs"].pop(),
            "layer 0: only one of prefill_4 and decode takes a value cache",
        ),
        (
            lambda c: [
                c["signatures"]["prefill_4"][end][0].update(shape=[1, 9, *more])
                for end, more in (("inputs", []), ("outputs", [11]))
            ],
            "prefill_4 writes 9 rows into caches of 8: export a shorter prefill",
        ),
        (wrong("prefill_4", "outputs", 0, shape=[1, 4, 12]), r"prefill_4 returns logits \[1, 4, 12\]"),
    ],
)
def test_prefills_that_do_not_fit_together(change, message):
    contract = Toy(cached_lengths=[4]).contract
    change(contract)
    with pytest.raises(ModelError, match=message) as error:
        Contract.parse(contract)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "the model has no o2o.contract"),
        ("{", "its metadata o2o.contract is damaged"),
        (json.dumps({"version": 2, "signatures": {}}), "has version 2; this o2o knows 1: update o2o"),
        (json.dumps({"version": 1, "signatures": {}}), "the model has no o2o.contract"),
        (json.dumps(Toy().contract), "the model takes a fixed number of tokens: convert it"),
    ],
)
def test_contracts_that_cannot_be_run_on_onnx(text, message):
    with pytest.raises(ModelError, match=message):
        Contract.parse_dynamic(text)


def test_a_bucket_is_decode_with_smaller_caches():
    contract = Toy().contract
    contract["signatures"]["decode_4"] = copy.deepcopy(contract["signatures"]["decode"])
    for entry in contract["signatures"]["decode_4"]["inputs"][2:]:
        entry.update(shape=[1, 4, 2, 3])
    assert list(Contract.parse(contract).decodes) == [4, 8]
    for entry in contract["signatures"]["decode_4"]["inputs"][2:]:
        entry.update(dtype="float16")
    with pytest.raises(ModelError, match=r"decode_4 is not decode with smaller caches.* bucket\.kvcache\.py"):
        Contract.parse(contract)
