"""A model's file is read once for the choice of an engine, its preparation and the display of its dtype."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from o2o import formats
from runtime_py import bench
from runtime_py import run as run_command
from runtime_py.engines.model_file import ModelFile, external_data, model_size
from runtime_py.engines.registry import installed
from tests.runtime_py.engines.litert.test_lowered_file import write_circle
from tests.runtime_py.tokenizers_on_disk import LLAMA, write_config, write_sentencepiece
from tests.runtime_py.toy import Toy
from tests.runtime_py.toy_onnx import toy_onnx, write_onnx

VOCAB = 380


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The readers that were called, in order."""
    calls: list[str] = []
    read, load = formats.read, ir.load

    def counted_read(source):
        calls.append("circle or tflite")
        return read(source)

    def counted_load(*args, **options):
        calls.append("onnx")
        return load(*args, **options)

    monkeypatch.setattr(formats, "read", counted_read)
    monkeypatch.setattr(ir, "load", counted_load)
    return calls


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(write_sentencepiece(tmp_path_factory.mktemp("tokenizer")), **LLAMA)


def write(folder: Path, suffix: str) -> Path:
    toy = Toy(vocab=VOCAB, capacity=24)
    file = folder / f"model{suffix}"
    if suffix == ".circle":
        return write_circle(toy, file)
    if suffix == ".onnx":
        return write_onnx(toy, file)
    file.write_bytes(toy.file)
    return file


@pytest.mark.parametrize(
    ("suffix", "engine", "reader"),
    [
        (".tflite", "litert", "circle or tflite"),
        (".circle", "litert", "circle or tflite"),
        (".onnx", "onnx", "onnx"),
    ],
)
def test_run_with_stats_reads_the_model_once(tmp_path, tokenizer, reads, suffix, engine, reader):
    if engine not in installed():
        pytest.skip(f"no {engine}")
    file = write(tmp_path, suffix)
    reads.clear()
    options = ["--tokenizer", str(tokenizer), "--engine", engine, "--stats", "--max-new-tokens", "2"]
    assert run_command.main([str(file), *options]) == 0
    assert reads == [reader]


def test_bench_reads_the_model_once_to_load_it_and_once_for_the_roofline(tmp_path, reads, monkeypatch):
    monkeypatch.setenv("O2O_CACHE", str(tmp_path / "cache"))
    file = write(tmp_path, ".circle")
    reads.clear()
    options = ["--rounds", "1", "--tokens", "2", "--warm", "--engine", "litert"]
    assert bench.main([str(file), *options]) == 0
    assert reads == ["circle or tflite"] * 2


def test_the_first_read_serves_the_dtype_and_the_caller(tmp_path, reads):
    model = ModelFile(write(tmp_path, ".circle"))
    reads.clear()
    assert model.weight_dtype == "float32"
    first = model.read().model
    assert len(reads) == 1
    assert model.read().model is not first, "the first one belongs to the caller, who may have changed it"
    assert len(reads) == 2


def test_size_includes_external_data(tmp_path):
    file = write_onnx(Toy(), tmp_path / "model.onnx", external=True)
    data = tmp_path / "model.onnx.data"
    assert model_size(file) == ModelFile(file).size == file.stat().st_size + data.stat().st_size


def test_external_data_of_other_names(tmp_path):
    file, data = tmp_path / "model.onnx", tmp_path / "model.onnx_data"
    onnx.save(toy_onnx(Toy()), file, save_as_external_data=True, location=data.name, size_threshold=0)
    (tmp_path / "other.onnx_data").write_bytes(b"0" * 1000)
    assert external_data(file) == [data]
    assert model_size(file) == file.stat().st_size + data.stat().st_size


def test_a_changed_file_is_noticed(tmp_path):
    file = write(tmp_path, ".circle")
    model = ModelFile(file)
    assert model.unchanged
    file.write_bytes(file.read_bytes() + b"\0")
    assert not model.unchanged
