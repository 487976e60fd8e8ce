from __future__ import annotations

import pytest
import torch

from export.custom_ops import dynamic_update_slice


@pytest.mark.parametrize(("start", "row"), [(0, 0), (3, 3), (4, 4), (9, 4), (-2, 0)])
def test_writes_rows_and_clamps_the_start(start: int, row: int) -> None:
    operand, update = torch.zeros(1, 2, 5, 3), torch.rand(1, 2, 1, 3)

    result = dynamic_update_slice(operand, update, torch.tensor([0, 0, start, 0], dtype=torch.int32))

    expected = operand.clone()
    expected[:, :, row : row + 1] = update
    torch.testing.assert_close(result, expected)
    assert not operand.any()  # a copy was written


def test_is_a_proper_operator() -> None:
    start = torch.tensor([1, 0], dtype=torch.int32)
    torch.library.opcheck(
        dynamic_update_slice,
        (torch.zeros(4, 3), torch.ones(2, 3), start),
        test_utils=("test_schema", "test_faketensor"),
    )
