"""Schemes: what rows they take, and scales."""

from __future__ import annotations

import numpy as np
import pytest

from o2o.quantization.schemes import FLOAT16, INT4_BLOCK32, INT4_BLOCK128, INT8, fitting, more_accurate


def test_the_largest_number_becomes_the_limit() -> None:
    np.testing.assert_array_equal(INT8.scales(np.float32([127, 1])), np.float32([1, np.float32(1) / 127]))
    np.testing.assert_array_equal(INT4_BLOCK32.scales(np.float32([7, 14])), [1, 2])


def test_no_scale_is_zero() -> None:
    for scheme in (INT8, INT4_BLOCK32):
        assert scheme.scales(np.float32([0])) > 0


def test_scales_of_blocks_are_float16_with_eight_bits() -> None:
    bounds = np.abs(np.random.default_rng(0).standard_normal(1000)).astype(np.float32)
    scales = INT4_BLOCK32.scales(bounds)
    assert (scales.view(np.uint32) & 0xFFFF == 0).all(), "no more bits than bfloat16 has"
    np.testing.assert_array_equal(scales, scales.astype(np.float16))


def test_the_smallest_scales_do_not_clip() -> None:
    bounds = np.geomspace(1e-9, 1e-3, 1000, dtype=np.float32)
    assert (bounds <= 7.5 * INT4_BLOCK32.scales(bounds)).all()


@pytest.mark.parametrize(("columns", "expected"), [(256, INT4_BLOCK128), (96, INT4_BLOCK32), (40, INT8)])
def test_rows_that_are_no_whole_blocks(columns: int, expected: object) -> None:
    assert fitting(INT4_BLOCK128, columns) is expected
    assert fitting(INT8, columns) is INT8
    assert fitting(FLOAT16, columns) is FLOAT16


def test_the_more_exact_of_two() -> None:
    assert more_accurate(INT8, INT4_BLOCK32) is INT8
    assert more_accurate(INT4_BLOCK32, FLOAT16) is FLOAT16
    assert more_accurate(None, FLOAT16) is None
