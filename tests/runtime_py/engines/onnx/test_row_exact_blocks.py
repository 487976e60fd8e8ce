"""Block sizes of MatMulNBits that compute each token alike on this machine."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime")
from o2o.lower.onnx.ort_form import BLOCKS
from runtime_py.engines.onnx import row_exact_blocks


@pytest.mark.parametrize("bits", [4, 8])
def test_the_largest_is_one_that_was_compared(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether they are exact in a model: `test_draft_verifiers`."""
    assert row_exact_blocks.largest_row_exact_block(bits) in BLOCKS
    compared: list[int] = []

    def is_row_exact(bits: int, block: int) -> bool:
        compared.append(block)
        return block < 64

    monkeypatch.setattr(row_exact_blocks, "_is_row_exact", is_row_exact)
    assert row_exact_blocks.largest_row_exact_block.__wrapped__(bits) == 32
    assert compared == [128, 64, 32]
