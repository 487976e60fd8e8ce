"""Symbolic dimensions of a twin: inputs that belong together agree, all others differ."""

from __future__ import annotations

import math

import pytest

from o2o.errors import ModelError
from o2o.onnx_fusion.sizes import twin_sizes
from tests.o2o.onnx_fusion.comparison import model_of, read


def sizes(inputs: str) -> tuple[dict[str, int], int]:
    return twin_sizes(read(model_of(f"g ({inputs}) => () <float[15, 7] w = {{0}}> {{ }}")).graphs[0])


def test_a_decoder_of_unrelated_names() -> None:
    known, batch = sizes(
        "int64[s1, s2] input_ids, int64[s3, s4] attention_mask, int64[s5, s6] position_ids, "
        "float[s7, 2, s8, 16] past_key_0, float[s9, 2, s10, 16] past_value_0"
    )
    texts, tokens, past = known["s1"], known["s2"], known["s8"]
    assert batch == texts == known["s3"] == known["s5"] == known["s7"] == known["s9"]
    assert tokens == known["s6"]
    assert known["s10"] == past
    assert known["s4"] == past + tokens
    assert len({texts, tokens, past}) == 3
    assert all(math.gcd(n, 15 * 7 * 2 * 16) == 1 for n in (texts, tokens, past))


def test_an_encoder_has_no_past() -> None:
    known, batch = sizes("int64[B, T] input_ids, int64[B, S] attention_mask")
    assert known["S"] == known["T"] != known["B"] == batch


def test_caches_of_an_encoder_have_a_length_of_their_own() -> None:
    known, _ = sizes(
        "int64[B, T] input_ids, float[B, 2, P, 16] past_key_0, float[B, 2, encoder_length, 16] past_key_1"
    )
    assert len(set(known.values())) == 4


def test_other_models_have_numbers_of_their_own() -> None:
    known, batch = sizes("float[N, C, H] x, float[M, 4] y")
    assert len(set(known.values())) == 4
    assert batch == known["N"]


def test_without_symbols_there_is_one_text() -> None:
    assert sizes("int64[1, 8] input_ids") == ({}, 1)


def test_a_dimension_without_a_name_is_refused() -> None:
    with pytest.raises(ModelError, match="has no name"):
        sizes("float[?, 4] x")
