"""sign.contract.py writes the roles that it finds, and those that it is given."""

from __future__ import annotations

import pytest

from o2o.contract import Role, contract_of, role_of
from o2o.model import Model
from tests.o2o.filters.conftest import Command
from tests.o2o.graphs import linear
from tests.o2o.roles.decoders import Form, decoder


def anonymous(**form) -> Model:
    return decoder(Form(**form), (1, 3))[0]


def test_a_decoder_gets_its_contract(command: Command) -> None:
    model, roles = decoder(Form(value_layout="BNHT"), (1, 3))
    after = command(model)
    for graph, other in zip(model.graphs, after.graphs, strict=True):
        for value, signed in zip(
            (*graph.inputs, *graph.outputs), (*other.inputs, *other.outputs), strict=True
        ):
            assert role_of(signed) == roles[value]
    assert "entry_1: tokens [1,1]: args_5 by data flow" in command.said
    assert "entry_1: key_cache of 2 layers, [1,2,6,4] BNTH: args_4, args_2 by data flow" in command.said
    assert "decode is entry_1 (capacity 6), prefill entry_3" in command.said


def test_the_user_has_the_last_word(command: Command) -> None:
    after = command(
        anonymous(), "--role", "args_5=position", "--role", "args_0=tokens", "--layout", "args_1=btnh",
        "--signature", "entry_1",
    )  # fmt: skip
    inputs = contract_of(after)["signatures"]["entry_1"]["inputs"]
    by_name = {entry["name"]: entry for entry in inputs}
    assert (by_name["args_5"]["role"], by_name["args_0"]["role"]) == ("position", "tokens")
    assert by_name["args_1"]["layout"] == "BTNH"
    other = contract_of(after)["signatures"]["entry_3"]["inputs"]
    assert next(entry for entry in other if entry["name"] == "args_0")["role"] == "position"


def test_a_model_without_signatures_gets_one(command: Command) -> None:
    model = anonymous()
    model.signatures.clear()
    assert [signature.name for signature in command(model).signatures] == ["decode"]


def test_what_is_missing_is_said(command: Command) -> None:
    code, message = command.refusal(linear())
    assert (code, message) == (
        1,
        "main: no input is token ids, and none is a KV cache: name them with sign.contract.py --role",
    )


def test_a_signature_that_is_no_decoder_stays_without(command: Command) -> None:
    model = anonymous()
    encoder = linear()
    encoder.signatures[0].name = "encode"
    model.graphs += encoder.graphs
    model.signatures += encoder.signatures
    after = command(model)
    assert set(contract_of(after)["signatures"]) == {"entry_1", "entry_3"}
    assert "encode: missing: no input is token ids" in command.said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--role", "nope=tokens"], "there is no input or output 'nope'"),
        (["--role", "args_0"], "'args_0' is not NAME=ROLE with tokens, position, window_row, mask"),
        (["--role", "args_0=words"], "'args_0=words' is not NAME=ROLE"),
        (["--role", "args_1=key_cache"], "write the role as key_cache:0"),
        (["--role", "args_0=tokens:1"], "write the role as tokens"),
        (["--layout", "BNT"], "'BNT' is no layout: give the four letters"),
        (["--layout", "nope=BNTH"], "there is no input or output 'nope'"),
        (["--signature", "nope"], "there is no signature 'nope'; there are: entry_1, entry_3"),
    ],
)
def test_wrong_usage(command: Command, arguments: list[str], message: str) -> None:
    code, text = command.refusal(anonymous(), *arguments)
    assert code == 2
    assert message in text


def test_roles_of_a_contract_stay(command: Command) -> None:
    model = anonymous()
    model.graphs[0].inputs[0].meta["role"] = Role("tokens")
    assert role_of(command(model).graphs[0].inputs[0]) == Role("tokens")
