"""Constants, ranges and fills."""

from __future__ import annotations

import pytest

from tests.o2o.raising.evaluation import assert_same, operators, parsed


def test_constants_of_all_kinds() -> None:
    nodes = """
        a = Constant <value_ints = [1, 2]> () b = Constant <value_float = 0.5> ()
        c = Cast <to = 1> (a) y = Add (c, b) z = Add (x, y)
    """
    assert operators(assert_same(parsed("float[2] x", "float[2] z", nodes))) == ["ADD"]


def test_a_range_from_a_computed_start() -> None:
    """Its length comes from shape inference: here the output says it."""
    nodes = "e = Add (p, n) y = Range (p, e, one)"
    assert_same(parsed("int64 p", "int64[4] y", nodes, constants="int64 n = {4}, int64 one = {1}"))


@pytest.mark.parametrize("size", [3, 300000])
def test_fills(size: int) -> None:
    """A large one stays an operator."""
    nodes = "f = ConstantOfShape (s) y = Add (f, x)"
    model = assert_same(parsed("float[1] x", f"float[{size}] y", nodes, constants=f"int64[1] s = {{{size}}}"))
    assert operators(model) == (["ADD"] if size == 3 else ["FILL", "ADD"])
