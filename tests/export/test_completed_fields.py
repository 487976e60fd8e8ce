"""Fields that transformers' configuration classes compute, without importing them."""

from __future__ import annotations

from export.completed_fields import completed_fields


def test_lists_of_layers() -> None:
    assert completed_fields("gemma2", {}, 3)["layer_types"] == [
        "sliding_attention",
        "full_attention",
        "sliding_attention",
    ]
    assert completed_fields("qwen3_next", {}, 4)["layer_types"][2:] == ["linear_attention", "full_attention"]


def test_what_the_file_says_stays() -> None:
    fields = {"layer_types": ["full_attention"], "pattern": [1]}
    completed = completed_fields("gemma2", fields, 1)
    assert completed["layer_types"] == ["full_attention"]
    completed["pattern"].append(2)
    assert fields["pattern"] == [1]


def test_an_unknown_type_has_what_it_is_given() -> None:
    assert completed_fields("no-such-type", {"a": 1}, 2) == {
        "a": 1,
        "layer_types": None,
        "num_hidden_layers": 2,
    }
