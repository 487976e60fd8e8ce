"""The files of a package, and the errors for missing or wrong ones."""

from __future__ import annotations

import json

import pytest

from o2o.errors import ModelError
from runtime_py.package import Package


def package(folder, **files) -> Package:
    (folder / "model.tflite").write_bytes(b"")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return Package.load(folder)


def test_the_circle_file_comes_first(tmp_path):
    for name in ("model.tflite", "model.circle"):
        (tmp_path / name).write_bytes(b"")
    assert Package.load(tmp_path).model.name == "model.circle"


def test_a_file_may_be_named(tmp_path):
    (tmp_path / "tinyllama_q8_ekv1024.tflite").write_bytes(b"")
    opened = Package.load(tmp_path / "tinyllama_q8_ekv1024.tflite")
    assert (opened.directory, opened.model.name) == (tmp_path, "tinyllama_q8_ekv1024.tflite")
    (tmp_path / "elsewhere").mkdir()
    assert Package.load(opened.model, tmp_path / "elsewhere").directory == tmp_path / "elsewhere"
    with pytest.raises(ModelError, match="no such folder"):
        Package.load(opened.model, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("files", "eos"),
    [
        ({}, []),
        ({"config": {"eos_token_id": 2}}, [2]),
        ({"config": {"eos_token_id": [2, 3]}}, [2, 3]),
        ({"config": {"eos_token_id": 0}}, [0]),
        ({"config": {"eos_token_id": 2}, "generation_config": {"eos_token_id": [5, 7]}}, [5, 7]),
        ({"config": {"eos_token_id": 2}, "generation_config": {"eos_token_id": 5}}, [5]),
        ({"config": {"eos_token_id": 2}, "generation_config": {}}, [2]),
        ({"config": {"eos_token_id": None}}, []),
    ],
)
def test_end_of_sequence(tmp_path, files, eos):
    assert package(tmp_path, **files).eos == frozenset(eos)


def test_end_of_sequence_that_is_no_id(tmp_path):
    with pytest.raises(
        ModelError, match=r"config.json: eos_token_id is '</s>': it must be a token id or a list"
    ):
        _ = package(tmp_path, config={"eos_token_id": "</s>"}).eos


def test_files_are_read_when_asked_for(tmp_path):
    (tmp_path / "config.json").write_text("{")
    opened = package(tmp_path)
    with pytest.raises(ModelError, match="is not JSON"):
        _ = opened.eos
