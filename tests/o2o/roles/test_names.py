"""Roles by name."""

from __future__ import annotations

import pytest

from o2o.contract import Role
from o2o.roles.names import role_by_name


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("tico::input_ids", Role("tokens")),
        ("serving_default_tokens:0", Role("tokens")),
        ("input_pos", Role("position")),
        ("attention_mask", Role("mask")),
        ("tico::past_key_values_key_cache_3", Role("key_cache", 3)),
        ("tico::past_key_values_value_cache_11", Role("value_cache", 11)),
        ("past_key_values.0.key", Role("key_cache", 0)),
        ("past_key_values.7.value", Role("value_cache", 7)),
        ("past_value_2", Role("value_cache", 2)),
        ("kv_cache_k_0", Role("key_cache", 0)),
        ("k_cache_5", Role("key_cache", 5)),
        ("cache_v_5", Role("value_cache", 5)),
        ("layers.4.k", Role("key_cache", 4)),
        ("logits", None),
        ("pixel_values", None),
        ("hidden_state_0", None),
        ("past_key_values", None),
        ("key_2_of_3_cache", None),
    ],
)
def test_inputs(name: str, role: Role | None) -> None:
    assert role_by_name(name, is_input=True) == role


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("StatefulPartitionedCall:logits", Role("logits")),
        ("present.0.key", Role("key", 0)),
        ("kv_slice_v_2", Role("value", 2)),
        ("tokens", None),
    ],
)
def test_outputs(name: str, role: Role | None) -> None:
    assert role_by_name(name, is_input=False) == role
