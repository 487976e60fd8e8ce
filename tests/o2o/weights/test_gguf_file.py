"""GGUF files: header, quantized tensors, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from o2o.errors import ModelError
from o2o.weights import gguf_tensor
from o2o.weights.gguf_file import part_paths, read_gguf

RNG = np.random.default_rng(0)
QUANTIZED = "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS IQ2_XXS IQ3_S IQ1_M TQ2_0 MXFP4"


def write(path: Path, tensors: dict[str, tuple[np.ndarray, Kind | None]], **metadata: Any) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc"])
    add = {str: writer.add_string, bool: writer.add_bool, float: writer.add_float64, list: writer.add_array}
    for name, value in metadata.items():
        add[type(value)](name, value)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata_and_plain_tensors(tmp_path: Path) -> None:
    w = RNG.normal(size=(3, 4)).astype(np.float32)
    bits = (w.view(np.uint32) >> 16).astype(np.uint16)
    tensors = {
        "w": (w, None),
        "half": (w.astype(np.float16), None),
        "brain": (bits.view(np.uint8), Kind.BF16),
    }
    file = read_gguf(
        write(tmp_path / "a.gguf", tensors, numbers=[3, 1], switch=True, scale=0.5, name="naïve")
    )
    assert file.architecture == "llama"
    assert file.metadata == {  # without the vocabulary, which transformers reads
        "general.architecture": "llama",
        "numbers": [3, 1],
        "switch": True,
        "scale": 0.5,
        "name": "naïve",
    }
    assert {name: (one.dtype, one.shape) for name, one in file.tensors.items()} == {
        "w": ("F32", (3, 4)),
        "half": ("F16", (3, 4)),
        "brain": ("BF16", (3, 4)),
    }
    np.testing.assert_array_equal(file.tensors["w"].read_float32(), w)
    np.testing.assert_array_equal(
        file.tensors["half"].read_float32(), w.astype(np.float16).astype(np.float32)
    )
    np.testing.assert_array_equal(
        file.tensors["brain"].read_float32(), (bits.astype(np.uint32) << 16).view("f4")
    )


@pytest.mark.parametrize("name", QUANTIZED.split())
def test_quantized_tensors(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_tensor, "ROWS_AT_A_TIME", 1000)  # several reads
    kind = Kind[name]
    _, width = gguf.GGML_QUANT_SIZES[kind]
    data = RNG.integers(0, 256, (7, 2 * width), dtype=np.uint8)
    try:
        with np.errstate(all="ignore"):
            expected = gguf.dequantize(data, kind)
    except NotImplementedError:
        pytest.skip(f"gguf does not read {name}")
    tensor = read_gguf(write(tmp_path / "a.gguf", {"w": (data, kind)})).tensors["w"]
    tensor.check_float()
    assert (tensor.dtype, tensor.shape, tensor.length) == (name, expected.shape, data.nbytes)
    got = np.concatenate(
        [tensor.read(start, min(33, tensor.size - start)) for start in range(0, tensor.size, 33)]
    )
    np.testing.assert_array_equal(got.reshape(expected.shape), expected)


def test_a_type_that_gguf_does_not_read(tmp_path: Path) -> None:
    _, width = gguf.GGML_QUANT_SIZES[Kind.Q8_K]
    file = read_gguf(write(tmp_path / "a.gguf", {"w": (np.zeros((1, width), np.uint8), Kind.Q8_K)}))
    with pytest.raises(ModelError, match="w is stored as Q8_K, which the package gguf does not read"):
        file.tensors["w"].check_float()


def test_a_damaged_number_is_named(tmp_path: Path) -> None:
    data = np.zeros((2, 34), np.uint8)
    data[1, :2] = np.array([np.nan], np.float16).view(np.uint8)  # the scale of the second row
    file = read_gguf(write(tmp_path / "a.gguf", {"w": (data, Kind.Q8_0)}))
    with pytest.raises(
        ModelError, match=r"w has 32 numbers that are not finite, the first is nan at \[1, 0\]"
    ):
        file.tensors["w"].read_float32()


@pytest.mark.parametrize("keep", [0, 3, 10, 100, -40])
def test_a_truncated_file(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path / "a.gguf", {"w": (np.ones((8, 32), np.float32), None)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"truncated or damaged|is not a GGUF file|is truncated") as error:
        read_gguf(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"version https://git-lfs", "Git LFS pointer"),
        (b"PK" + bytes(99), "is not a GGUF file"),
        (b"GGUF" + (3).to_bytes(4, "big") + bytes(99), "big endian"),
        (b"GGUF" + (9).to_bytes(4, "little") + bytes(99), "version 9 of GGUF"),
        (b"GGUF" + (3).to_bytes(4, "little") + bytes(16), r"no general\.architecture"),
        (b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 99, "truncated or damaged"),
    ],
)
def test_another_file(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=complaint):
        read_gguf(tmp_path / "a.gguf")


def write_parts(folder: Path, count: int = 2, **metadata: Any) -> list[Path]:
    """A model in parts, as llama-gguf-split writes it: metadata in the first part only."""
    folder.mkdir(exist_ok=True)
    paths = []
    for number in range(count):
        path = folder / f"model-{number + 1:05}-of-{count:05}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.kv_data[0].pop("general.architecture") if number else None
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_uint32("split.tensors.count", metadata.get("tensors", count))
        writer.add_tensor(
            metadata.get(f"name{number}", f"part{number}.weight"), np.full(4, number, np.float32)
        )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(path)
    return paths


@pytest.mark.parametrize("number", range(3))
def test_any_part_stands_for_the_model(tmp_path: Path, number: int) -> None:
    paths = write_parts(tmp_path, 3)
    assert part_paths(paths[number]) == paths
    file = read_gguf(paths[number])
    assert (file.path, file.architecture) == (paths[0], "llama")
    assert [tensor.read_float32().tolist() for tensor in file.tensors.values()] == [
        [0.0] * 4,
        [1.0] * 4,
        [2.0] * 4,
    ]


def test_parts_that_are_no_model(tmp_path: Path) -> None:
    def complaint(path: Path) -> str:
        with pytest.raises(ModelError) as caught:
            read_gguf(path)
        return str(caught.value)

    first, second = write_parts(tmp_path / "missing")
    second.unlink()
    assert "model-00002-of-00002.gguf is missing beside it" in complaint(first)
    first, second = write_parts(tmp_path / "renamed")
    other = first.rename(first.with_name("other.gguf"))
    assert "such as NAME-00001-of-00002.gguf" in complaint(other)
    first, second = write_parts(tmp_path / "swapped")
    first.replace(second)
    assert "is missing beside it" in complaint(second)
    write_parts(tmp_path / "swapped")[0].replace(second)
    write_parts(tmp_path / "again")[0].rename(first)
    assert "is not part 2 of 2" in complaint(first)
    first, _ = write_parts(tmp_path / "twice", name1="part0.weight")
    assert "which another part has too" in complaint(first)
    first, _ = write_parts(tmp_path / "fewer", tensors=5)
    assert "has 2 tensors in its 2 parts, not 5" in complaint(first)
