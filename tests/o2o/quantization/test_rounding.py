"""Rounding of rows: maxima, scales, and bytes that do not depend on the chunks."""

from __future__ import annotations

import numpy as np
import pytest

from o2o.quantization.error import QuantizationError
from o2o.quantization.rounding import RowQuantizer, best_scales, block_maxima
from o2o.quantization.schemes import FLOAT16, INT4_BLOCK32, INT8, SCHEMES, Scheme
from tests.o2o.graphs import weights

W = weights(6, 128)


@pytest.mark.parametrize("scheme", [INT8, INT4_BLOCK32])
def test_maxima_of_rows_and_blocks(scheme: Scheme) -> None:
    blocks = np.abs(W).reshape(6, scheme.blocks(128), -1)
    np.testing.assert_array_equal(block_maxima(W, scheme), blocks.max(-1))


def test_a_block_with_nan_has_no_maximum() -> None:
    w = W.copy()
    w[2, 40] = np.nan
    assert np.argwhere(np.isnan(block_maxima(w, INT4_BLOCK32))).tolist() == [[2, 1]]


def test_scales_of_rows_map_the_maximum_to_the_limit() -> None:
    maxima = block_maxima(W, INT8)
    np.testing.assert_array_equal(best_scales(W, maxima, INT8), maxima / np.float32(127))


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_bytes_do_not_depend_on_the_chunks(scheme: Scheme) -> None:
    scales = best_scales(W, block_maxima(W, scheme), scheme) if scheme.limit else np.empty((6, 0), np.float32)
    whole = RowQuantizer(scheme, 6, 128).quantize(W, scales, QuantizationError()).tobytes()
    quantizer = RowQuantizer(scheme, 2, 128)
    chunks = [slice(start, start + 2) for start in (0, 2, 4)]
    raw = [quantizer.quantize(W[rows], scales[rows], QuantizationError()).tobytes() for rows in chunks]
    assert b"".join(raw) == whole
    assert len(whole) == W.size * scheme.bits // 8


def test_the_error_is_added() -> None:
    error = QuantizationError()
    RowQuantizer(FLOAT16, 6, 128).quantize(W, np.empty((6, 0), np.float32), error)
    lost = W.astype(np.float16).astype(np.float32) - W
    assert error.largest_error == np.abs(lost).max()
