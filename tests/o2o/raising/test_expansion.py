"""Operators that ONNX defines by others."""

from __future__ import annotations

import pytest

from o2o.errors import ModelError
from tests.o2o.raising.evaluation import assert_same, parsed, raised


@pytest.mark.parametrize(
    ("nodes", "inputs", "output"),
    [
        ("y = Selu (x)", "float[2,3] x", "float[2,3] y"),
        ("y = Softsign (x)", "float[2,3] x", "float[2,3] y"),
        ("y = Celu <alpha = 0.5> (x)", "float[2,3] x", "float[2,3] y"),
        ("y = Attention <is_causal = 1> (x, x, x)", "float[1,2,3,4] x", "float[1,2,3,4] y"),
    ],
)
def test_definitions(nodes: str, inputs: str, output: str) -> None:
    assert_same(parsed(inputs, output, nodes, 23))


def test_what_has_no_definition_is_named() -> None:
    with pytest.raises(
        ModelError, match=r"Det y \(x float32 \[2, 2\], opset 21\): Circle has no such operator"
    ):
        raised(parsed("float[2,2] x", "float y", "y = Det (x)"))
