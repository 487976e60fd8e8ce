"""ONNX files from Circle files: of large models stored in the disk cache."""

from __future__ import annotations

import os
import re
import resource

import numpy as np
import pytest

from o2o.errors import ModelError
from runtime_py.engines import prepared_artifacts
from runtime_py.engines.loading import load_engine
from runtime_py.engines.model_file import ModelFile
from runtime_py.engines.onnx import prepare
from runtime_py.engines.onnx.lowered_file import lower_file
from runtime_py.engines.options import EngineOptions
from runtime_py.engines.registry import installed
from runtime_py.package import Package
from tests.runtime_py.engines.conftest import S
from tests.runtime_py.engines.litert.test_lowered_file import write_circle
from tests.runtime_py.toy import Toy

pytestmark = pytest.mark.skipif("onnx" not in installed(), reason="no onnxruntime")


def test_an_onnx_package(pipeline_package, tmp_path, reference):
    lower_file(ModelFile(pipeline_package.model), tmp_path / "model.onnx")
    opened = Package.load(tmp_path)
    assert opened.size == sum(file.stat().st_size for file in tmp_path.glob("model.onnx*"))
    text, expected = reference
    engine = opened.engine()
    session = engine.open_session()
    assert opened.loaded.description == "onnx (float32, 1 thread): the only engine for .onnx files"
    assert session.prefill(text[:5]).argmax() == expected[5][0]
    assert (engine.contract.capacity, engine.contract.vocab_size) == (S, engine.vocab_size)
    engine.close()


def test_a_large_model_is_packed_once(pipeline_package, reference, monkeypatch, tmp_path):
    monkeypatch.setattr(prepared_artifacts, "MIN_BYTES", 0)
    monkeypatch.setenv("O2O_CACHE", str(tmp_path / "cache"))
    text, expected = reference
    log_lines: list[str] = []
    for again in range(3):
        file = pipeline_package.model if again < 2 else tmp_path / "model.circle"  # a copy
        if again == 2:
            file.write_bytes(pipeline_package.model.read_bytes())
        engine = Package.load(file).engine(threads=2, log=log_lines.append, engine="onnx")
        session = engine.open_session()
        assert session.prefill(text[:5]).argmax() == expected[5][0]
        engine.close()
    assert len(log_lines) == 1
    place = re.escape(str(tmp_path / "cache"))
    assert re.fullmatch(rf"packing the weights once: up to [12] MB into {place}", log_lines[0])
    (entry,) = (tmp_path / "cache").iterdir()
    assert {file.name for file in entry.iterdir()} >= {"model.onnx", "entry.json"}
    assert not list(entry.glob("plain*"))


def test_a_full_disk_is_no_reason_not_to_run(pipeline_package, reference, monkeypatch, tmp_path):
    monkeypatch.setattr(prepared_artifacts, "MIN_BYTES", 0)
    (tmp_path / "cache").write_text("no folder")
    monkeypatch.setenv("O2O_CACHE", str(tmp_path / "cache"))
    text, expected = reference
    log_lines: list[str] = []
    engine = pipeline_package.engine(log=log_lines.append, engine="onnx")
    session = engine.open_session()
    assert session.prefill(text[:5]).argmax() == expected[5][0]
    engine.close()
    (line,) = log_lines
    assert line.startswith("packing the weights for this load only: ")


@pytest.mark.parametrize("room", [1, 100_000])
def test_a_disk_that_becomes_full(pipeline_package, reference, monkeypatch, tmp_path, room):
    """During lowering, or while ONNX Runtime writes the packed model."""
    monkeypatch.setattr(prepared_artifacts, "MIN_BYTES", 0)
    monkeypatch.setenv("O2O_CACHE", str(tmp_path / "cache"))
    pack = prepare.pack_in_child

    def pack_in_little_room(*args):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        try:
            pack(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(prepare, "pack_in_child", pack_in_little_room)
    text, expected = reference
    log_lines: list[str] = []
    engine = pipeline_package.engine(log=log_lines.append, engine="onnx")
    session = engine.open_session()
    assert session.prefill(text[:5]).argmax() == expected[5][0]
    engine.close()
    assert log_lines[1].startswith("packing the weights for this load only: ")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_large_model_that_cannot_be_onnx_is_lowered_once(tmp_path, monkeypatch):
    """The child's error is the error: nothing is stored, logged as a failure of packing, or tried again."""
    monkeypatch.setattr(prepared_artifacts, "MIN_BYTES", 0)
    monkeypatch.setenv("O2O_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(prepare, "lower_file", lambda *_: pytest.fail("it was lowered again"))
    file = write_circle(Toy(cached_lengths=[4]), tmp_path / "model.circle")
    messages: list[str] = []
    with pytest.raises(ModelError, match=r"model\.circle: ") as error:
        Package.load(file).engine(engine="onnx", log=messages.append)
    assert str(error.value).count("model.circle") == 1
    assert "\n" not in str(error.value)
    assert messages == [f"packing the weights once: up to 1 MB into {tmp_path / 'cache'}"]
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_onnx_does_not_support_is_one_line(tmp_path):
    file = write_circle(Toy(cached_lengths=[4]), tmp_path / "model.circle")
    with pytest.raises(ModelError, match=r"model\.circle") as error:
        load_engine(file, EngineOptions(engine="onnx"))
    assert "\n" not in str(error.value)


def test_a_small_model_that_is_lowered_slowly_is_stored(pipeline_package, reference, monkeypatch, tmp_path):
    monkeypatch.setenv("O2O_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(prepared_artifacts, "MIN_SECONDS", 0)
    text, expected = reference
    messages: list[str] = []
    for again in range(2):
        if again:
            monkeypatch.setattr(prepare, "lower_file", lambda *_: pytest.fail("it was lowered again"))
        engine = pipeline_package.engine(engine="onnx", log=messages.append)
        session = engine.open_session()
        assert session.prefill(text[:5]).argmax() == expected[5][0]
        engine.close()
    assert messages == []
    (entry,) = (tmp_path / "cache").iterdir()
    os.truncate(entry / "model.onnx", 10)
    monkeypatch.undo()
    monkeypatch.setenv("O2O_CACHE", str(tmp_path / "cache"))
    pipeline_package.engine(engine="onnx").close()  # it is not used


def test_a_small_onnx_file_is_prepared_once(pipeline_package, reference, monkeypatch, tmp_path):
    monkeypatch.setenv("O2O_CACHE", str(tmp_path / "cache"))
    lower_file(ModelFile(pipeline_package.model), tmp_path / "model.onnx")
    monkeypatch.setattr(prepared_artifacts, "MIN_SECONDS", 0)
    text, expected = reference
    messages: list[str] = []
    logits = []
    for again in range(2):
        if again:
            monkeypatch.setattr(prepare, "select_logits", lambda *_: pytest.fail("it was read again"))
        engine = Package.load(tmp_path).engine(log=messages.append)
        logits.append(engine.open_session().prefill(text[:5]))
        engine.close()
    assert logits[0].argmax() == expected[5][0]
    assert np.array_equal(*logits)
    assert messages == []


def test_a_large_onnx_file_is_packed_once(pipeline_package, reference, monkeypatch, tmp_path):
    """The digest is of the external data too."""
    monkeypatch.setenv("O2O_CACHE", str(tmp_path / "cache"))
    lower_file(ModelFile(pipeline_package.model), tmp_path / "model.onnx")
    monkeypatch.setattr(prepared_artifacts, "MIN_BYTES", 0)
    text, expected = reference
    messages: list[str] = []
    logits = []
    for _ in range(2):
        engine = Package.load(tmp_path).engine(log=messages.append)
        session = engine.open_session()
        logits.append(session.prefill(text[:5]))
        assert logits[-1].argmax() == expected[5][0]
        engine.close()
    assert len(messages) == 1
    data = next(tmp_path.glob("model.onnx?*"))
    content = bytearray(data.read_bytes())
    content[: len(content) // 2] = bytes(len(content) // 2)
    data.write_bytes(content)
    engine = Package.load(tmp_path).engine(log=messages.append)
    assert not np.array_equal(engine.open_session().prefill(text[:5]), logits[0])
    engine.close()
