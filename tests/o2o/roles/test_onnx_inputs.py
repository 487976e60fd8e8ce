"""Roles in ONNX without names: token ids, positions, masks, switches, and caches in every form."""

from __future__ import annotations

import pytest

from o2o import formats
from o2o.contract import Role
from o2o.roles import find_roles
from o2o.roles.onnx_caches import cache_pairs
from o2o.roles.onnx_inputs import position_limit
from tests.runtime_py.toy_decoder import NAMES, POSITIONS, Form, toy_decoder

SCRAMBLED = {name: f"arg_{number}" for number, name in enumerate([*NAMES, "use_cache_branch", "keep"])}
KINDS = {
    "ids": Role("tokens"),
    "mask": Role("mask"),
    "position": Role("position"),
    "past_key": Role("key_cache", 0),
    "past_value": Role("value_cache", 0),
    "present_key": Role("key", 0),
    "present_value": Role("value", 0),
    "logits": Role("logits"),
    "use_cache_branch": Role("use_cache"),
}


@pytest.mark.parametrize(
    "form",
    [
        Form(names=SCRAMBLED),
        Form(names=SCRAMBLED, branch=True),
        Form(names=SCRAMBLED, position="first"),
        Form(names=SCRAMBLED, position="none"),
        Form(names=SCRAMBLED, cache="static"),
        Form(names=SCRAMBLED, cache="scatter"),
        Form(names=SCRAMBLED, cache="window", mask=False),
    ],
    ids=str,
)
def test_data_flow_says_what_names_do_not(form: Form) -> None:
    model = formats.loads(toy_decoder(form).SerializeToString())
    model.add_default_signature("decode")
    (findings,) = find_roles(model)
    original = {new: old for old, new in SCRAMBLED.items()}
    graph = model.graphs[0]
    roles = {original[v.name or ""]: findings.roles.get(v) for v in (*graph.inputs, *graph.outputs)}
    expected = {name: KINDS[name] for name in roles}
    assert {name: (role.kind, role.layer) for name, role in roles.items() if role} == {
        name: (role.kind, role.layer) for name, role in expected.items()
    }


@pytest.mark.parametrize(
    ("cache", "in_place", "is_cut"),
    [("grows", False, False), ("static", False, False), ("scatter", True, False), ("window", False, True)],
)
def test_what_happens_to_a_cache(cache: str, in_place: bool, is_cut: bool) -> None:
    """An operator may write into its input if nothing else reads that. A window drops rows."""
    model = formats.loads(toy_decoder(Form(cache=cache)).SerializeToString())
    assert [(pair.in_place, pair.is_cut) for pair in cache_pairs(model.graphs[0])] == [(in_place, is_cut)] * 2


def test_the_table_of_positions_limits_them() -> None:
    graph = formats.loads(toy_decoder(Form(names=SCRAMBLED)).SerializeToString()).graphs[0]
    (tokens,) = (value for value in graph.inputs if value.name == SCRAMBLED["ids"])
    assert position_limit(graph, tokens) == POSITIONS
