"""Derived tensors are computed by rows; the result is that of numpy on whole tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from o2o.weights import derived_tensor, safetensors
from o2o.weights.derived_checkpoint import rows_of
from o2o.weights.derived_tensor import (
    Concatenated,
    DerivedTensor,
    Expression,
    LowRank,
    Rows,
    Shifted,
    Sum,
    Transposed,
    expression_of,
)

RNG = np.random.default_rng(0)
W, A, B, V = (RNG.normal(size=shape).astype(np.float32) for shape in ((12, 5), (3, 5), (12, 3), (12,)))
ORDER = [9, 1, 3, 5, 7, 0, 2, 4, 11, 10]


@pytest.fixture
def leaf(tmp_path: Path) -> dict[str, Expression]:
    save_file({"w": W, "a": A, "b": B, "v": V}, tmp_path / "x.safetensors")
    tensors = safetensors.read_header(tmp_path / "x.safetensors")
    return {name: expression_of(tensor) for name, tensor in tensors.items()}


@pytest.mark.parametrize("elements", [1, 7, 20, 1 << 22])
def test_expressions(leaf: dict[str, Expression], elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derived_tensor, "BLOCK_ELEMENTS", elements)
    moved = Rows(leaf["w"], rows_of(ORDER))
    cases: list[tuple[Expression, np.ndarray]] = [
        (leaf["w"], W),
        (moved, W[ORDER]),
        (Rows(leaf["v"], ((2, 9, 3), (0, 2, 1))), V[[2, 5, 8, 0, 1]]),
        (Transposed(moved), W[ORDER].T),
        (Shifted(leaf["v"], -1.0), V - 1),
        (Concatenated((leaf["w"], leaf["a"], moved)), np.concatenate([W, A, W[ORDER]])),
        (Sum(leaf["w"], LowRank(leaf["b"], leaf["a"]), 0.5), W + 0.5 * (B @ A)),
        (
            Sum(Transposed(leaf["w"]), LowRank(Transposed(leaf["a"]), Transposed(leaf["b"])), 2),
            W.T + 2 * (B @ A).T,
        ),
    ]
    for expression, expected in cases:
        tensor = DerivedTensor("t", Path("t"), expression)
        assert tensor.shape == expected.shape
        np.testing.assert_allclose(tensor.read_float32(), expected, rtol=1e-5, atol=1e-6)
        flat = np.concatenate(list(tensor.chunks(4)))
        np.testing.assert_allclose(flat, expected.reshape(-1), rtol=1e-5, atol=1e-6)
        assert max(len(chunk) for chunk in tensor.chunks(4)) <= 4


def test_a_renamed_tensor_has_the_key_of_its_bytes(leaf: dict[str, Expression]) -> None:
    one, other = (DerivedTensor(name, Path("t"), leaf["w"]) for name in "ab")
    assert one.key == other.key  # tied weights are stored once
    assert DerivedTensor("c", Path("t"), Shifted(leaf["w"], 1.0)).key != one.key


@pytest.mark.parametrize("order", [[], [3], [0, 1, 2], [4, 2, 0], [0, 2, 4, 1, 3, 5], [5, 5]])
def test_row_numbers_as_ranges(order: list[int]) -> None:
    assert [row for part in rows_of(order) for row in range(*part)] == order
