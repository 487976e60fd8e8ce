"""Roles against the behavior of a model: right ones pass, in each layout; crossed ones are named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from o2o import formats
from o2o.check.role_behavior import refuse_wrong_roles
from o2o.contract import Role, role_of
from o2o.errors import ModelError
from o2o.lower.litert import lower_to_litert
from o2o.model import Model
from tests.o2o.lower.onnx.decoders import Shape, decoder


def written(model: Model) -> Model:
    return formats.loads(formats.dumps(model))


@pytest.mark.parametrize("layout", ["BNTH", "BTNH"])
def test_roles_of_fused_and_of_lowered_attention_pass(layout: str) -> None:
    refuse_wrong_roles(written(decoder(Shape(K=4, layout=layout))))
    refuse_wrong_roles(written(lower_to_litert(decoder(Shape(K=4, layout=layout, rotate=False), T=3))))


def crossed(name: str, other: str) -> Model:
    """Two inputs exchange their roles."""
    model = written(lower_to_litert(decoder(Shape(K=4))))
    values = {value.name: value for value in model.graphs[0].inputs}
    first, second = role_of(values[name]), role_of(values[other])
    values[name].meta["role"], values[other].meta["role"] = second, first
    return model


def test_keys_for_values() -> None:
    with pytest.raises(ModelError, match=r"past_(key|value)_1 of decode .* so it is no (key|value)_cache"):
        refuse_wrong_roles(crossed("past_key_1", "past_value_1"))


def test_tokens_for_the_position() -> None:
    with pytest.raises(ModelError, match="the role of the position"):
        refuse_wrong_roles(crossed("input_ids", "cache_position"))


def test_the_cache_of_another_layout_is_named() -> None:
    model = written(lower_to_litert(decoder(Shape(K=4, layout="BNTH"))))
    (value,) = (value for value in model.graphs[0].inputs if value.name == "past_value_1")
    role = role_of(value)
    assert isinstance(role, Role)
    value.meta["role"] = replace(role, layout="BTNH")
    with pytest.raises(ModelError, match="rows of past_value_1 of decode after position"):
        refuse_wrong_roles(model)
