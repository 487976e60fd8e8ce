"""The contract says what the file's tensors are, and is never stale."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, get_args

import pytest

from o2o import formats
from o2o.contract import (
    METADATA_NAME,
    VERSION,
    Kind,
    Layout,
    OnertLayout,
    Role,
    attach,
    contract_of,
    dumps,
    parse_role,
    role_of,
)
from o2o.errors import ModelError
from tests import schemas
from tests.o2o.graphs import INT32, Graph, decoder, linear


def test_what_it_says() -> None:
    contract = contract_of(decoder())
    assert contract["version"] == 1
    assert list(contract["signatures"]) == ["prefill", "decode"]
    assert contract["signatures"]["decode"] == {
        "inputs": [
            {"name": "input_ids", "role": "tokens", "dtype": "int64", "shape": [1, 1]},
            {"name": "cache_position", "role": "position", "dtype": "int64", "shape": [1]},
            {
                "name": "past_key_0",
                "role": "key_cache",
                "layer": 0,
                "layout": "BNTH",
                "dtype": "float32",
                "shape": [1, 2, 8, 4],
            },
        ],
        "outputs": [
            {"name": "logits", "role": "logits", "dtype": "float32", "shape": [1, 1, 2000]},
            {
                "name": "key_0",
                "role": "key",
                "layer": 0,
                "layout": "BNTH",
                "dtype": "float32",
                "shape": [1, 2, 8, 4],
            },
        ],
    }


def test_roles_travel_in_the_file() -> None:
    model = formats.loads(formats.dumps(decoder()))
    assert METADATA_NAME not in dict(model.metadata), "it is not kept twice"
    for graph in model.graphs:
        assert role_of(graph.inputs[2]) == Role("key_cache", 0, "BNTH")
    assert contract_of(model) == contract_of(decoder())


def test_it_follows_the_graph() -> None:
    model = formats.loads(formats.dumps(decoder()))
    model.graphs[1].inputs[0].dtype = INT32
    model.signatures[1].name = "step"
    contract = contract_of(formats.loads(formats.dumps(model)))["signatures"]
    assert contract["step"]["inputs"][0]["dtype"] == "int32"


def test_a_model_without_roles_has_none() -> None:
    assert dumps(linear()) is None
    assert METADATA_NAME.encode() not in formats.dumps(linear())


def test_a_signature_without_roles_is_left_out() -> None:
    model = decoder()
    other = Graph("other")
    other.output(other.op("ABS", [other.input("x", [1])], [1], name="y"))
    model.graphs.append(other.ir)
    model.signatures += other.model().signatures
    assert list(contract_of(model)["signatures"]) == ["prefill", "decode"]


def test_what_it_does_not_know_is_passed_over() -> None:
    """A later version may know more kinds; a name may be gone."""
    contract = contract_of(decoder())
    entries = contract["signatures"]["decode"]["inputs"]
    entries[0]["role"] = "audio"
    entries[1]["name"] = "elsewhere"
    del entries[2]["layout"]
    model = decoder()
    for graph in model.graphs:
        for value in graph.inputs:
            value.meta.pop("role")
    attach(model, json.dumps(contract).encode())
    decode = model.graphs[1]
    assert [role_of(value) for value in decode.inputs] == [None, None, Role("key_cache", 0)]


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"version": "x"}', b'{"version": 1, "signatures": [1]}', b"\xff"]
)
def test_damage(data: bytes) -> None:
    with pytest.raises(ModelError, match=r"its metadata o2o\.contract is damaged"):
        attach(decoder(), data)


def test_a_later_version() -> None:
    with pytest.raises(ModelError, match="has version 2; this o2o knows 1"):
        attach(decoder(), b'{"version": 2}')


def test_the_role_of_a_cache() -> None:
    cache = Role("value_cache", 3, "BNTH")
    assert (cache.is_cache, cache.is_rows, cache.slot) == (True, False, ("value", 3))
    assert cache.output_role == Role("value", 3, "BNTH")
    assert (cache.output_role.is_cache, cache.output_role.is_rows, cache.output_role.slot) == (
        False,
        True,
        ("value", 3),
    )
    assert not Role("tokens").is_cache


def test_its_schema_knows_what_this_module_knows() -> None:
    schema = schemas.validator("contract").schema
    tensor = schema["$defs"]["tensor"]["properties"]
    assert tensor["role"]["enum"] == list(get_args(Kind))
    assert tensor["layout"]["enum"] == [*get_args(Layout), *get_args(OnertLayout)]
    assert schema["properties"]["version"]["const"] == VERSION


WRONG: dict[str, Callable[[dict[str, Any]], object]] = {
    "an unknown role": lambda entry: entry.update(role="adapter"),
    "another spelling": lambda entry: entry.update(Role="tokens"),
    "no name": lambda entry: entry.pop("name"),
    "no shape": lambda entry: entry.pop("shape"),
    "a shape of text": lambda entry: entry.update(shape="[1, 1]"),
    "a negative dimension": lambda entry: entry.update(shape=[-1]),
    "a layer of tokens": lambda entry: entry.update(layer=0),
    "a cache without a layer": lambda entry: entry.update(role="key_cache"),
    "an unknown layout": lambda entry: entry.update(role="key_cache", layer=0, layout="THNB"),
    "an output's role": lambda entry: entry.update(role="logits"),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_its_schema_refuses(change: Callable[[dict[str, Any]], object]) -> None:
    contract, validator = contract_of(decoder()), schemas.validator("contract")
    assert validator.is_valid(contract)
    change(contract["signatures"]["decode"]["inputs"][0])
    assert not validator.is_valid(contract)


@pytest.mark.parametrize("change", [{"version": 2}, {"version": "1"}, {"signatures": {}}, {"more": 1}])
def test_its_schema_refuses_another_document(change: dict[str, Any]) -> None:
    assert not schemas.validator("contract").is_valid(contract_of(decoder()) | change)


@pytest.mark.parametrize(
    "field", [{"layout": 5}, {"layout": "BNH"}, {"layout": []}, {"layer": "0"}, {"layer": 0.5}]
)
def test_roles_of_a_wrong_type(field):
    with pytest.raises(ValueError, match=r"the (layout|layer) .* (has no axis T|is no integer)"):
        parse_role({"role": "key_cache", "layer": 0, "layout": "BNTH", **field})
