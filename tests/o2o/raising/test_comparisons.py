"""Comparisons, logic and selection."""

from __future__ import annotations

import numpy as np
import pytest

from tests.o2o.raising.evaluation import assert_same, parsed


@pytest.mark.parametrize("op_type", ["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"])
def test_comparisons(op_type: str) -> None:
    assert_same(parsed("int64[3,1] x, int64[4] z", "bool[3,4] y", f"y = {op_type} (x, z)"))


@pytest.mark.parametrize("op_type", ["And", "Or", "Xor"])
def test_logic(op_type: str) -> None:
    assert_same(parsed("bool[3,1] x, bool[4] z", "bool[3,4] y", f"n = Not (x) y = {op_type} (n, z)"))


def test_where() -> None:
    assert_same(parsed("bool[3,1] c, float[4] x, float[1] z", "float[3,4] y", "y = Where (c, x, z)"))


@pytest.mark.parametrize("expression", ["IsNaN (x)", "IsInf (x)", "IsInf <detect_negative = 0> (x)"])
def test_what_is_no_number(expression: str) -> None:
    proto = parsed("float[4] x", "bool[4] y", f"y = {expression}")
    assert_same(proto, {"x": np.array([1, np.nan, np.inf, -np.inf], np.float32)})
