from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from o2o.errors import ModelError
from o2o.weights.pytorch_file import read_header

MATRIX = torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7


def written(tmp_path: Path, content: Any, **how: Any) -> Path:
    path = tmp_path / "weights.bin"
    torch.save(content, path, **how)
    return path


def repacked(path: Path, compression: int = zipfile.ZIP_STORED, **changed: bytes | None) -> Path:
    """The same archive as another tool packs it, with other contents for some of its entries, or without."""
    other = path.with_name("repacked.bin")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(other, "w", compression) as target:
        for entry in source.infolist():
            content = changed.get(Path(entry.filename).name.strip("."), source.read(entry))
            if content is not None:
                target.writestr(entry.filename, content)
    return other


@pytest.mark.parametrize(
    ("dtype", "called"),
    [
        (torch.float32, "F32"),
        (torch.float64, "F64"),
        (torch.float16, "F16"),
        (torch.bfloat16, "BF16"),
    ],
)
def test_floats(tmp_path: Path, dtype: torch.dtype, called: str) -> None:
    state = {f"layer.{k}": (MATRIX + k).to(dtype) for k in range(12)}  # their order is not that of their keys
    header = read_header(written(tmp_path, state))

    assert list(header) == list(state)
    for name, tensor in header.items():
        assert (tensor.name, tensor.dtype, tensor.shape, tensor.length) == (
            name,
            called,
            (3, 4),
            12 * dtype.itemsize,
        )
        assert (tensor.read_float32() == state[name].float().numpy()).all()


def test_other_dtypes_and_shapes(tmp_path: Path) -> None:
    state = {
        "mask": torch.tensor([True, False]),
        "ids": torch.arange(5),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "byte": torch.tensor([1, 2, 3], dtype=torch.uint8),
    }
    header = read_header(written(tmp_path, state))
    assert {name: (tensor.dtype, tensor.shape, tensor.length) for name, tensor in header.items()} == {
        "mask": ("BOOL", (2,), 2),
        "ids": ("I64", (5,), 40),
        "scalar": ("F32", (), 4),
        "empty": ("F32", (0, 3), 0),
        "byte": ("U8", (3,), 3),
    }
    assert header["scalar"].read_float32() == np.float32(2.5)
    assert header["empty"].read_float32().shape == (0, 3)


def test_views_and_shared_storages(tmp_path: Path) -> None:
    state = {
        "embedding": MATRIX,
        "head": MATRIX,  # tied
        "parameter": torch.nn.Parameter(MATRIX + 1),
        "rows": MATRIX[1:],
        "row": MATRIX[2],
        "element": MATRIX[1, 2:3],
    }
    path = written(tmp_path, state)
    header = read_header(path)

    assert (header["head"].offset, header["head"].length) == (header["embedding"].offset, 48)
    assert header["rows"].offset == header["embedding"].offset + 16
    for name, tensor in header.items():
        assert (tensor.read_float32() == state[name].detach().numpy()).all()
    assert path.stat().st_size < 3000 + 2 * 48  # two storages


def test_no_data_is_read(tmp_path: Path) -> None:
    """Eight gigabytes that the file system does not have: the file is one hole."""
    with FakeTensorMode():
        state = {name: torch.empty(1 << 30) for name in ("large", "larger")}
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        path = written(tmp_path, state)
    header = read_header(path)
    assert header["larger"].offset - header["large"].offset > 4 << 30
    assert header["larger"].length == 4 << 30
    assert path.stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module"])
def test_wrapped(tmp_path: Path, key: str) -> None:
    content = {"epoch": 3, "loss": torch.tensor(1.0), key: {"a": MATRIX}, "optimizer": {"state": {0: MATRIX}}}
    assert list(read_header(written(tmp_path, content))) == ["a"]


def test_a_tensor_by_the_name_of_a_wrapper(tmp_path: Path) -> None:
    assert list(read_header(written(tmp_path, {"model": MATRIX, "step": 7}))) == ["model"]


class Harmful:
    """What an attacker would put into a checkpoint."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.victim),)


def test_nothing_in_a_pickle_is_run(tmp_path: Path) -> None:
    path = written(tmp_path, {"a": MATRIX, "b": Harmful(tmp_path / "victim")})
    with pytest.raises(ModelError, match=r"is refused: its pickle runs posix\.mkdir, .*state_dict\(\)"):
        read_header(path)
    assert not (tmp_path / "victim").exists()
    torch.load(path, weights_only=False)  # it would have
    assert (tmp_path / "victim").exists()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (torch.nn.Linear(2, 2), r"pickle runs torch\.nn\.modules\.linear\.Linear"),
        ({"args": argparse.Namespace(), "model": {"a": MATRIX}}, r"pickle runs argparse\.Namespace"),
        (MATRIX, "holds a Tensor, not a state dict"),
        ([MATRIX], "holds a list, not a state dict"),
        ({"epoch": 3}, "a dict of epoch: save only the state dict"),
        ({}, "a dict of nothing"),
        ({"a": MATRIX.T}, r"a of shape \[4, 3\] is not stored in C order: .*contiguous"),
        ({"a": MATRIX[:1].expand(3, 4)}, "a of shape .* is not stored in C order"),
        ({"a": MATRIX.to_sparse()}, "a of shape .* is not stored in C order"),
        ({"a": MATRIX.to(torch.complex64)}, r"a has an unknown dtype torch\.complex64"),
    ],
)
def test_what_is_no_state_dict(tmp_path: Path, content: Any, complaint: str) -> None:
    refused(written(tmp_path, content), complaint)


def refused(path: Path, complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint) as error:
        read_header(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_before_pytorch_1_6(tmp_path: Path) -> None:
    path = written(tmp_path, {"a": MATRIX}, _use_new_zipfile_serialization=False)
    refused(path, r"wrote before 1\.6: save it again with `torch\.save\(torch\.load\(FILE")
    torch.save(torch.load(path, weights_only=True), path)  # as the message says
    assert (read_header(path)["a"].read_float32() == MATRIX.numpy()).all()


def test_a_torchscript_program(tmp_path: Path) -> None:
    path = tmp_path / "program.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("program/data.pkl", b"")
        archive.writestr("program/constants.pkl", b"")
    refused(path, r"is a TorchScript program: .*state_dict\(\)")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is not a PyTorch checkpoint"),
        (b"Once upon a time", "is not a PyTorch checkpoint"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "is a Git LFS pointer, .*git lfs pull",
        ),
        (pickle.dumps({"a": 1}), "is not a PyTorch checkpoint"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    refused(path, complaint)


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/story.txt", "Once upon a time")
    refused(path, r"it has no data\.pkl")


def test_cut_short(tmp_path: Path) -> None:
    path = written(tmp_path, {"a": MATRIX, "b": torch.zeros(1000)})
    whole = path.read_bytes()
    for size in (8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(path, "is truncated or damaged .*: download it again")


def test_a_damaged_archive(tmp_path: Path) -> None:
    path = written(tmp_path, {"a": MATRIX})
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = next(entry for entry in archive.infolist() if entry.filename.endswith("data/0"))
    data[entry.header_offset : entry.header_offset + 4] = b"gone"
    path.write_bytes(data)
    refused(path, "is truncated or damaged .*its entry weights/data/0 is not at its offset")


def test_repacked(tmp_path: Path) -> None:
    """PyTorch computes where later entries begin, as its own writer would have put them: not believed."""
    path = written(tmp_path, {"a": MATRIX, "b": MATRIX + 1})
    refused(repacked(path), "b is not an uncompressed entry of `torch.save`")
    refused(repacked(path, zipfile.ZIP_DEFLATED), "a is not an uncompressed entry of `torch.save`")
    refused(repacked(path, **{"1": None}), "b is not an uncompressed entry")
    refused(repacked(path, **{"0": b"short"}), "a is not an uncompressed entry")
    # In a file of an older PyTorch, which does not say how it was laid out, it looks.
    old = read_header(repacked(path, format_version=None, storage_alignment=None))
    assert (old["b"].read_float32() == (MATRIX + 1).numpy()).all()


def test_the_byte_order_of_another_machine(tmp_path: Path) -> None:
    """PyTorch would crash on it, not raise."""
    path = repacked(written(tmp_path, {"a": MATRIX}), byteorder=b"big")
    refused(path, "is big endian")


def test_without_pytorch(tmp_path: Path) -> None:
    path = written(tmp_path, {"a": MATRIX})
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from o2o.weights.pytorch_file import read_header\n"
        "try: read_header(sys.argv[1])\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    output = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    ).stdout
    assert output.startswith("ModelError")
    assert "install torch" in output
