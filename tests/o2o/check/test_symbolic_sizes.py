"""Sizes of symbolic dimensions: by names, expressions and roles."""

from __future__ import annotations

import pytest

from o2o.check.symbolic_sizes import evaluated, sizes_of


def test_names_of_transformers() -> None:
    tensors = [
        ("tokens", ("batch_size", "sequence_length")),
        ("mask", ("batch_size", "total_sequence_length")),
        (None, ("batch_size", 2, "past_sequence_length", 8)),
        (None, ("batch_size", 2, "past_sequence_length + sequence_length", 8)),
    ]
    assert sizes_of(tensors, 4) == {
        "batch_size": 1,
        "sequence_length": 4,
        "total_sequence_length": 8,
        "past_sequence_length": 4,
        "past_sequence_length + sequence_length": 8,
    }


def test_names_that_an_exporter_makes_up() -> None:
    tensors = [("tokens", ("s1", "s2")), ("mask", ("s3", "s4")), (None, ("s1", 2, "s5", 8))]
    assert sizes_of([*tensors, (None, ("s1", 2, "s5 + s2", 8))], 3) == {
        "s1": 1, "s2": 3, "s3": 1, "s4": 6, "s5": 3, "s5 + s2": 6,
    }  # fmt: skip


def test_a_mask_without_caches() -> None:
    assert sizes_of([("tokens", ("b", "t")), ("mask", ("b", "m"))], 5) == {"b": 1, "t": 5, "m": 5}


def test_no_language_model() -> None:
    assert sizes_of([(None, ("batch", 3, "h", "?"))], 7) == {"batch": 1, "h": 7, "?": 7}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("a + 1", 4),
        ("2*a - b", 4),
        ("a // 2", 1),
        ("floor(a)", None),
        ("c", None),
        ("a +", None),
        ("a // 0", None),
    ],
)
def test_expressions(expression: str, expected: int | None) -> None:
    assert evaluated(expression, {"a": 3, "b": 2}) == expected
