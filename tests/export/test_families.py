"""What a model family needs, said once."""

from __future__ import annotations

from typing import Any

import pytest

from export.config import CheckpointConfig
from export.families import FAMILIES, Family, family_of
from tests.checkpoints import GROUPED


def family(model_type: str, **fields: Any) -> Family:
    return family_of(CheckpointConfig({"model_type": model_type, **GROUPED, **fields}, "folder"))


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gemma", "olmo", "smollm3", "nonesuch"])
def test_a_family_without_a_row_follows_the_general_rules(model_type: str) -> None:
    assert family(model_type) == Family()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_row_says_something(model_type: str) -> None:
    row = family(model_type)
    assert row != Family()
    assert not row.refusal.endswith(".")


@pytest.mark.parametrize(
    ("model_type", "fields", "parallel"),
    [
        ("phi", {}, True),
        ("llama", {}, False),
        ("gpt_neox", {"use_parallel_residual": True}, True),
        ("gpt_neox", {"use_parallel_residual": False}, False),
        ("falcon", {"parallel_attn": True}, True),
    ],
)
def test_attention_and_mlp_in_parallel(model_type: str, fields: dict[str, Any], parallel: bool) -> None:
    assert family(model_type, **fields).parallel_residual(fields) is parallel
