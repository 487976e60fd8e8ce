"""The finder of roles: decoders without a contract, and with names that say nothing."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from o2o import formats
from o2o.contract import Role, contract_of, role_of
from o2o.filters.fuse_attention import FuseAttention
from o2o.model import Model
from o2o.rewriting.dead_code_elimination import remove_dead_nodes
from o2o.roles import find_roles
from o2o.roles.finder import BY_FLOW, BY_NAME, GIVEN
from tests.o2o.fused_graphs import Form as Fused
from tests.o2o.fused_graphs import attention
from tests.o2o.graphs import Graph
from tests.o2o.language_model_graphs import language_model
from tests.o2o.roles.decoders import Form, decoder


@pytest.mark.parametrize(
    "form",
    [
        Form(),
        Form(key_layout="BTNH", value_layout="BTNH"),
        Form(value_layout="BNHT", mask="float"),
        Form(mask="bool"),
        Form(rows_only=True),
        Form(key_layout="BNHT", value_layout="BTNH", layers=1),
    ],
    ids=str,
)
def test_data_flow_says_all(form: Form) -> None:
    model, roles = decoder(form, (1, 3))
    for findings in find_roles(model):
        values = {*findings.signature.inputs.values(), *findings.signature.outputs.values()}
        assert findings.roles == {value: role for value, role in roles.items() if value in values}
        assert set(findings.reasons.values()) == {BY_FLOW}
        assert findings.missing() == []


def stripped(model: Model) -> Model:
    """The same model without roles."""
    for graph in model.graphs:
        for value in (*graph.inputs, *graph.outputs):
            value.meta.pop("role", None)
    return model


def test_a_prefill_without_logits_writes_a_last_layer_that_nothing_reads() -> None:
    model, roles = decoder(Form(logits=False), (3,))
    remove_dead_nodes(model.graphs[0])
    (findings,) = find_roles(model)
    assert findings.roles == roles
    assert findings.missing() == []


def test_windows_are_those_of_attention() -> None:
    """Also of a last layer that a prefill without logits writes and never reads: decode says it."""
    model, roles = decoder(Form(window=2), (1, 3))
    FuseAttention().apply(model, argparse.Namespace(explain=False, assume_full_cache=None, core=True))
    prefill = model.signatures[1]
    logits = prefill.graph.outputs.pop(0)
    del prefill.outputs[logits.name or ""], roles[logits]
    remove_dead_nodes(prefill.graph)
    decode, short = find_roles(model)
    assert {**decode.roles, **short.roles} == roles
    assert {role.window for role in roles.values() if role.layer is not None} == {2}


def test_names_say_what_data_flow_does_not() -> None:
    """This model has no SOFTMAX. Layouts follow from the axis that is written."""
    model = language_model()
    expected = contract_of(model)
    results = find_roles(stripped(model))
    assert contract_of(model) == expected
    assert {BY_FLOW, BY_NAME} == {reason for findings in results for reason in findings.reasons.values()}


def test_the_user_says_the_rest_and_goes_first() -> None:
    model, _ = decoder(Form())
    (findings,) = find_roles(model, {"args_5": Role("position"), "args_0": Role("tokens")})
    by_name = {name: findings.roles[value] for name, value in findings.signature.inputs.items()}
    assert (by_name["args_0"].kind, by_name["args_5"].kind) == ("tokens", "position")
    assert [*findings.reasons.values()].count(GIVEN) == 2


def test_caches_of_attention_that_are_outputs_too() -> None:
    """TICO's adapter: no other output returns the caches."""
    model = stripped(attention(Fused(layout="BNTH", has_roles=False)))
    graph = model.graphs[0]
    graph.outputs.extend(graph.inputs[3:5])
    (findings,) = find_roles(model)
    roles = [role_of(value) for value in graph.inputs[3:6]]
    assert roles == [Role("key_cache", 0, "BNTH"), Role("value_cache", 0, "BNTH"), Role("position")]
    assert not any("returns the cache" in line for line in findings.missing())


def test_what_is_missing_is_one_line_each() -> None:
    graph = Graph("decode")
    x, y = graph.input("image", [1, 8]), graph.input("past_key_0", [1, 2, 5, 4])
    graph.output(graph.op("NEG", [x], [1, 8]), graph.op("NEG", [y], [1, 2, 5, 4]))
    (findings,) = find_roles(graph.model())
    assert findings.missing() == [
        "no input indexes an embedding: name the token ids with sign.contract.py --role NAME=tokens",
        "layer 0 has a key cache and no value cache: name it with sign.contract.py --role NAME=value_cache:0",
        "the layout of 'past_key_0' [1, 2, 5, 4] is not clear: "
        "give it with sign.contract.py --layout, such as BNTH for [1,K,S,H]",
        "no input is the position of the first token: name it with sign.contract.py --role NAME=position",
        "no output returns the cache 'past_key_0': name it with sign.contract.py --role NAME=key:0",
        "the role of image is not clear: name it with sign.contract.py --role",
    ]
    (findings,) = find_roles(graph.model(), layouts={"": "BNTH"})
    assert not any("layout" in line for line in findings.missing())


def test_inputs_that_no_operator_reads() -> None:
    model, _ = decoder(Form())
    graph = model.graphs[0]
    flag = ir.Value(name="use_cache", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL))
    graph.inputs.append(flag)
    model.signatures[0].inputs["use_cache"] = flag
    (findings,) = find_roles(model)
    assert (findings.unused, findings.unknown, findings.missing()) == (["use_cache"], [], [])
    entry = contract_of(model)["signatures"]["entry_1"]["inputs"][-1]
    assert entry == {"name": "use_cache", "dtype": "bool", "shape": [], "unused": True}


@pytest.mark.parametrize("form", ["prefill", "static", "concat"])
def test_exported(exported_model: Callable[[str, str], Path], form: str) -> None:
    model = formats.load(exported_model("grouped", form))
    model.add_default_signature("main")
    expected = contract_of(model)
    find_roles(stripped(model))
    assert contract_of(model) == expected
