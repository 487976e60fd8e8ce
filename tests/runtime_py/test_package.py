"""The files of a package, and the errors for missing or wrong ones."""

from __future__ import annotations

import json
import warnings

import pytest

from o2o.errors import ModelError
from runtime_py.generation.generation_config import UnsupportedSettingWarning
from runtime_py.generation.sampling import GREEDY
from runtime_py.package import Package
from tests.runtime_py.tokenizers_on_disk import write_sentencepiece
from tests.runtime_py.toy import Toy


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


def test_settings_that_are_not_supported_are_named_once(tmp_path):
    write_sentencepiece(tmp_path)
    opened = package(tmp_path, generation_config={"num_beams": 2})
    opened.model.write_bytes(Toy(vocab=380).file)
    with opened:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            greedy = list(opened.stream([1], max_new_tokens=3, sampling=GREEDY))
        with pytest.warns(UnsupportedSettingWarning, match="not supported, and ignored: num_beams"):
            assert list(opened.stream([1], max_new_tokens=3)) == greedy
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            list(opened.stream([1], max_new_tokens=3))


def test_files_are_read_when_asked_for(tmp_path):
    (tmp_path / "config.json").write_text("{")
    opened = package(tmp_path)
    with pytest.raises(ModelError, match="is not JSON"):
        _ = opened.eos
