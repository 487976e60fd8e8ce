"""Constants that are quantized while they are written."""

from __future__ import annotations

import io
from pathlib import Path

import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import example, given
from safetensors.torch import save_file

from o2o import formats
from o2o.errors import ModelError
from o2o.formats.tensors import storage_key
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.quantization import tensors
from o2o.quantization.schemes import FLOAT16, INT4_BLOCK32, INT4_BLOCK128, INT8, SCHEMES, Scheme
from o2o.quantization.tensors import QuantizedTensor
from o2o.weights.checkpoint_tensor import CheckpointTensor
from o2o.weights.safetensors import read_header
from tests.o2o.graphs import FLOAT, Graph, weights

matrices = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.sampled_from([128, 256])),
    elements=st.floats(-3e5, 3e5, width=32),
    fill=st.just(np.float32(0)),
)
SHORT = {INT8: "int8", INT4_BLOCK32: "int4", INT4_BLOCK128: "int4"}


def quantized(w: np.ndarray, scheme: Scheme) -> QuantizedTensor:
    return QuantizedTensor("w", ir.Tensor(w), scheme)


def meaning(tensor: QuantizedTensor) -> np.ndarray:
    numbers = tensor.numpy().astype(np.float32)
    if not tensor.scheme.limit:
        return numbers
    return (numbers.reshape(*tensor.scales.shape, -1) * tensor.scales[..., None]).reshape(numbers.shape)


def off(w: np.ndarray, result: QuantizedTensor) -> tuple[np.ndarray, np.ndarray]:
    """How far each number is off, and its scale, float64 [rows, blocks, columns of a block]."""
    scale = result.scales.astype(np.float64)[..., None]
    blocks = (*result.scales.shape, -1)
    return np.abs(w.reshape(blocks) - scale * result.numpy().astype(np.float64).reshape(blocks)), scale


@given(matrices)
def test_no_number_is_off_by_more_than_half_a_scale(w: np.ndarray) -> None:
    result = quantized(w, INT8)
    lost, scale = off(w, result)
    assert (lost <= scale * (0.5 + 1e-5)).all()
    assert np.abs(result.numpy().astype(int)).max() <= INT8.limit


@given(matrices, st.sampled_from([INT4_BLOCK32, INT4_BLOCK128]))
def test_only_the_largest_numbers_of_four_bits_are_cut_off(w: np.ndarray, scheme: Scheme) -> None:
    result = quantized(w, scheme)
    lost, scale = off(w, result)
    cut = np.abs(w.reshape(lost.shape)) > scale * 7.5
    assert (lost[~cut] <= np.broadcast_to(scale * (0.5 + 1e-5), lost.shape)[~cut]).all()
    numbers = result.numpy().astype(int)
    assert -8 <= numbers.min() <= numbers.max() <= 7


@given(matrices, st.sampled_from([INT4_BLOCK32, INT4_BLOCK128]))
def test_scales_of_four_bits_lose_least(w: np.ndarray, scheme: Scheme) -> None:
    """No block loses more than with the scale by which nothing is cut off."""
    result = quantized(w, scheme)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scheme, "limits", (scheme.limit,))
        plain = quantized(w, scheme)
    lost, others = ((off(w, one)[0] ** 2).sum(-1) for one in (result, plain))
    assert (lost <= others * (1 + 1e-4)).all()


def test_four_bits_of_normal_numbers_lose_a_tenth_less() -> None:
    w = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)
    for scheme in (INT4_BLOCK32, INT4_BLOCK128):
        result = quantized(w, scheme)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Scheme, "limits", (scheme.limit,))
            plain = quantized(w, scheme)
        result.tobytes(), plain.tobytes()
        assert result.error is not None
        assert plain.error is not None
        assert result.error.rms < 0.92 * plain.error.rms


@given(matrices.filter(lambda w: np.abs(w).max() < 6e4))
def test_halves_are_numpy_s(w: np.ndarray) -> None:
    np.testing.assert_array_equal(quantized(w, FLOAT16).numpy(), w.astype(np.float16))


@given(matrices, st.sampled_from(list(SHORT)))
@example(np.eye(1, 128, dtype=np.float32) * np.float32(1e-45), INT8)  # its square is zero in float32
def test_the_error_is_what_was_lost(w: np.ndarray, scheme: Scheme) -> None:
    result = quantized(w, scheme)
    lost = meaning(result).astype(np.float64) - w
    assert result.error is not None
    if w.any():
        rms = np.sqrt((lost**2).sum() / (w.astype(np.float64) ** 2).sum())
        assert result.error.rms == pytest.approx(rms, rel=1e-3, abs=1e-7)
        assert result.error.max == pytest.approx(np.abs(lost).max() / np.abs(w).max(), rel=1e-3, abs=1e-6)
    else:
        assert (result.error.rms, result.error.max) == (0, 0)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_bytes_by_hand(scheme: Scheme) -> None:
    """int4: the first of two numbers in the lower half of a byte."""
    w = weights(3, 128)
    raw = np.frombuffer(quantized(w, scheme).tobytes(), np.uint8)
    if scheme is FLOAT16:
        np.testing.assert_array_equal(raw.view(np.float16).reshape(w.shape), w.astype(np.float16))
        return
    result = quantized(w, scheme)
    blocks = w.reshape(*result.scales.shape, -1)
    expected = (
        np.rint(blocks / result.scales[..., None])
        .clip(scheme.lowest, scheme.limit)
        .astype(np.int8)
        .reshape(-1)
    )
    if scheme.bits == 4:
        expected = (expected[1::2] << 4) | (expected[0::2] & 15)
    np.testing.assert_array_equal(raw.view(np.int8), expected)


def checkpoint(folder: Path, w: np.ndarray, dtype: torch.dtype) -> Path:
    path = folder / "model.safetensors"
    save_file({"pad": torch.zeros(3), "w": torch.from_numpy(w).to(dtype)}, path)
    return path


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_same_from_everywhere(
    scheme: Scheme, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From memory at once, and some rows at a time: from a checkpoint's tensor, and from a model's file."""
    w = torch.from_numpy(weights(37, 256)).to(dtype).float().numpy()
    expected = quantized(w, scheme)
    path = checkpoint(tmp_path, w, dtype)
    graph = Graph("main")
    graph.output(graph.fc(graph.input("x", [1, 256]), graph.constant("w", w), "y"))
    formats.save(graph.model(), tmp_path / "model.circle")
    stored = formats.load(tmp_path / "model.circle").graphs[0].initializers["w"].const_value
    assert stored is not None
    monkeypatch.setattr(tensors, "CHUNK", 5 * 256)
    sources: list[ir.TensorProtocol] = [
        ir.Tensor(w),
        CheckpointTensor("w", read_header(path)["w"], FLOAT),
        UnboundTensor("w", path, "w", FLOAT, (37, 256)),
        stored,
    ]
    for source in sources:
        result = QuantizedTensor("w", source, scheme)
        sink = io.BytesIO()
        result.tofile(sink)
        assert sink.getvalue() == expected.tobytes() == result.tobytes(), type(source).__name__
        assert result.nbytes == len(sink.getvalue())
        np.testing.assert_array_equal(result.scales, expected.scales)
        assert result.error is not None
        assert expected.error is not None
        assert result.error.rms == pytest.approx(expected.error.rms, rel=1e-4)


def test_a_large_tensor_is_never_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint(tmp_path, weights(512, 256), torch.bfloat16)
    monkeypatch.setattr(tensors, "CHUNK", 1024)
    result = QuantizedTensor("w", CheckpointTensor("w", read_header(path)["w"], FLOAT), INT8)
    assert max(len(chunk) for chunk in result.chunks()) <= 1024
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("o2o.weights.weight_source.WeightSource.read_float32", _never)
        result.tofile(io.BytesIO())


def _never(*_: object) -> None:
    pytest.fail("read as a whole")


def test_two_of_one_source_are_one_storage() -> None:
    tensor = ir.Tensor(weights(2, 128))
    first, second = QuantizedTensor("a", tensor, INT8), QuantizedTensor("b", tensor, INT8)
    assert storage_key(first) == storage_key(second)
    assert storage_key(first) != storage_key(QuantizedTensor("c", tensor, FLOAT16)) != storage_key(tensor)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_what_is_not_finite_is_refused(number: float, scheme: Scheme) -> None:
    w = weights(3, 128)
    w[1, 5] = number
    with pytest.raises(
        ModelError, match=r"w has 1 number that is not finite, .*the first is -?(nan|inf) at \[1, 5\]"
    ):
        quantized(w, scheme)


@pytest.mark.parametrize(("scheme", "number"), [(FLOAT16, 7e4), (INT4_BLOCK32, 5e5)])
def test_what_is_too_large_is_refused(scheme: Scheme, number: float) -> None:
    w = weights(3, 128)
    w[1, 5] = number
    with pytest.raises(ModelError, match="or beyond"):
        quantized(w, scheme)
    assert np.isfinite(meaning(quantized(w, INT8))).all()
