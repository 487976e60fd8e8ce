"""pack.litertlm: a model, its tokenizer and its configuration in one file."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from o2o import formats
from o2o.filters.gc import Gc
from o2o.filters.inspect import Inspect
from o2o.filters.pack_litertlm import PackLitertlm
from o2o.litertlm import read_bundle
from o2o.model import Model, shape_of
from o2o.streams import open_file
from tests.litertlm import TOY, pack, word_tokenizer, write_package
from tests.o2o.graphs import operators
from tests.runtime_py.toy import HEAD, HEADS, Toy


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_package(tmp_path / "toy")


def test_the_caches_have_heads_before_tokens(package: Path) -> None:
    """As LiteRT-LM takes them."""
    before, after = formats.load(package / "model.tflite"), formats.load(pack(package, "--check"))
    for signature in after.signatures:
        assert shape_of(signature.inputs["kv_cache_k_0"]) == (1, HEADS, 16, HEAD)
        assert shape_of(signature.outputs["kv_cache_v_0"]) == (1, HEADS, 16, HEAD)
    assert [one.name for one in after.signatures] == [one.name for one in before.signatures]
    assert after.history[-1]["filter"] == "pack.litertlm.py"
    assert after.history[-1]["arguments"] == []


def test_caches_in_that_layout_stay(tmp_path: Path) -> None:
    package = write_package(tmp_path / "toy", cache_layout="BNTH")
    before, after = formats.load(package / "model.tflite"), formats.load(pack(package))
    assert operators(after)["TRANSPOSE"] < operators(before)["TRANSPOSE"]
    for old, new in zip(before.signatures, after.signatures, strict=True):
        assert [shape_of(value) for value in new.inputs.values()] == [
            shape_of(value) for value in old.inputs.values()
        ]


def test_a_folder_a_file_and_a_pipe_give_the_same_bytes(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = pack(package).read_bytes()
    other = tmp_path / "other.litertlm"
    assert PackLitertlm.main([str(package / "model.tflite"), "-o", str(other)]) == 0
    assert other.read_bytes() == expected
    with open(package / "model.tflite") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert PackLitertlm.main(["--tokenizer", str(package), "-o", str(other)]) == 0
    assert other.read_bytes() == expected


def test_large_constants_may_be_stored_by_offset(package: Path) -> None:
    """As in a file of gigabytes: the offsets count from the section's first byte."""
    expected = formats.dumps(formats.load(pack(package)))
    sink = io.BytesIO()
    formats.write(formats.load(package / "model.tflite"), sink, limit=0)
    (package / "model.tflite").write_bytes(sink.getvalue())
    assert formats.dumps(formats.load(pack(package))) == expected


def test_filters_read_the_language_model(
    package: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, target = pack(package), tmp_path / "model.tflite"
    assert Gc.main([str(file), "-o", str(target)]) == 0
    assert "only its language model is written, without tokenizer and metadata" in capfd.readouterr().err
    assert operators(formats.load(target)) == operators(formats.load(file))
    assert Inspect.main([str(file), "--json"]) == 0
    described = json.loads(capfd.readouterr().out)
    assert described["bytes"] == file.stat().st_size
    assert len(described["litertlm"]["sections"]) == 4
    assert described["format"] == "tflite"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ai_edge": False}, "does not take tokens, input_pos, kv_cache_k_0, ...: run sign.ai_edge.py first"),
        ({"cached_lengths": ()}, "it has no prefill and decode, only decode"),
    ],
)
def test_refused_signatures(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], options: dict[str, bool], message: str
) -> None:
    package = write_package(tmp_path / "toy", **options)
    assert PackLitertlm.main([str(package), "-o", str(tmp_path / "x.litertlm")]) == 1
    assert message in capfd.readouterr().err
    assert not (tmp_path / "x.litertlm").exists()


def test_refused_folders(package: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, message in (
        ([str(empty)], "this folder has no model.tflite: convert with --format tflite"),
        ([str(package), "--tokenizer", str(empty)], "has no tokenizer.json and no tokenizer.model"),
        ([str(package), "--tokenizer", str(tmp_path / "none")], "no such folder"),
        (["-"], "the model comes from stdin: give the folder of its tokenizer with --tokenizer"),
    ):
        assert PackLitertlm.main([*arguments, "-o", str(tmp_path / "x.litertlm")]) == 2
        assert message in capfd.readouterr().err


def test_the_section_begins_where_a_page_does(package: Path) -> None:
    section = read_bundle(open_file(pack(package))).section("TFLiteModel")
    assert section is not None
    assert section.start % 4096 == 0


def signed_model() -> Model:
    """For the manners of filters."""
    return formats.loads(Toy(**TOY).file)


def tokenizer_folder(folder: Path) -> Path:
    """For the manners of filters."""
    folder.mkdir(exist_ok=True)
    word_tokenizer().save(str(folder / "tokenizer.json"))
    return folder
