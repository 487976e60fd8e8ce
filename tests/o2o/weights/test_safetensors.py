from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from o2o.errors import ModelError
from o2o.weights.safetensors import read_header


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_says_where_each_tensor_lies(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"one": torch.arange(6.0).reshape(2, 3), "two": torch.arange(4, dtype=torch.int64)}
    save_file(tensors, path, metadata={"format": "pt"})

    header = read_header(path)

    assert set(header) == {"one", "two"}  # not __metadata__
    one, data = header["one"], path.read_bytes()
    assert (one.dtype, one.shape, one.length) == ("F32", (2, 3), 24)
    assert data[one.offset : one.offset + one.length] == tensors["one"].numpy().tobytes()
    two = header["two"]
    assert data[two.offset : two.offset + two.length] == tensors["two"].numpy().tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_reads_any_float_as_float32(tmp_path: Path, dtype: str) -> None:
    values = torch.tensor([[0.0, -1.5, 3.140625], [65504.0, 1e-7, -0.0]]).to(getattr(torch, dtype))
    save_file({"pad": torch.zeros(3), "x": values}, tmp_path / "a.safetensors")

    numbers = read_header(tmp_path / "a.safetensors")["x"].read_float32()

    assert numbers.dtype == np.float32
    np.testing.assert_array_equal(numbers, values.float().numpy())
    chunks = list(read_header(tmp_path / "a.safetensors")["x"].chunks(4))
    assert [len(chunk) for chunk in chunks] == [4, 2]
    np.testing.assert_array_equal(np.concatenate(chunks).reshape(2, 3), numbers)


def test_a_tensor_of_no_dimension_or_no_element(tmp_path: Path) -> None:
    save_file({"scalar": torch.tensor(2.5), "none": torch.zeros(0, 4)}, tmp_path / "a.safetensors")
    header = read_header(tmp_path / "a.safetensors")
    assert header["scalar"].read_float32() == 2.5
    assert header["none"].read_float32().shape == (0, 4)


def test_integers_are_no_weights(tmp_path: Path) -> None:
    save_file({"x": torch.arange(3)}, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match="x is stored as I64, not as a float"):
        read_header(tmp_path / "a.safetensors")["x"].read_float32()


@pytest.mark.parametrize("left", [0, 4, 8, 60, -1])
def test_a_file_cut_short(tmp_path: Path, left: int) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"layer.weight": torch.zeros(64)}, path)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ModelError, match=r"a\.safetensors is truncated") as error:
        read_header(path)
    if left == -1:
        assert "layer.weight at byte" in str(error.value)


def entry(**changes: Any) -> dict[str, Any]:
    return {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        (b"{not json", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        ([1, 2], "not JSON"),
        (entry(dtype="Q3"), "unknown dtype 'Q3'"),
        (entry(shape=[3]), r"shape \[3\] and dtype F32, but bytes 0 to 8"),
        (entry(data_offsets=[8, 0]), "bytes 8 to 0"),
        (entry(shape=[-2], data_offsets=[8, 0]), "bytes 8 to 0"),
        (entry(data_offsets=[-8, 0]), "bytes -8 to 0"),
        (entry(data_offsets=[0]), "entry for x is damaged"),
        (entry(shape=None), "entry for x is damaged"),
        ({"x": 3}, "entry for x is damaged"),
    ],
)
def test_a_header_that_contradicts_itself(tmp_path: Path, header: Any, complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        read_header(write(tmp_path / "a.safetensors", header, bytes(8)))


def test_a_git_lfs_pointer(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4400000000\n")
    with pytest.raises(ModelError, match="Git LFS pointer"):
        read_header(path)
