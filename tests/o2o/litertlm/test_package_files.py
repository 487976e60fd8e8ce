"""The files of a package in a `.litertlm` file, and the files that stand for another program's metadata."""

from __future__ import annotations

import io
import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from o2o.errors import ModelError
from o2o.litertlm.container import Bundle, Contents, plan_bundle, read_bundle
from o2o.litertlm.llm_metadata import TOP_P, LlmMetadata, Sampler
from o2o.litertlm.package_files import files_of, metadata_of, sections_of
from o2o.streams import MemorySource
from tests.litertlm import TEMPLATE, word_tokenizer, write_package
from tests.runtime_py.tokenizers_on_disk import write_sentencepiece


def bundle_of(*sections: Contents) -> Bundle:
    sink = io.BytesIO()
    plan_bundle({}, sections).write(sink)
    return read_bundle(MemorySource(sink.getvalue(), "x.litertlm"))


def packed(folder: Path) -> Bundle:
    return bundle_of(*sections_of(folder, 16, 11)[0])


def metadata(folder: Path) -> LlmMetadata:
    read = metadata_of(packed(folder))
    assert read is not None
    return read


def test_a_package_comes_back_as_it_was(tmp_path: Path) -> None:
    write_package(tmp_path)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool.jinja").write_text("x")
    (tmp_path / "README.md").write_text("not a file of the package")
    expected = {
        path.relative_to(tmp_path).as_posix(): path.read_bytes()
        for path in tmp_path.rglob("*.j*")
        if path.is_file()
    }
    assert files_of(packed(tmp_path)) == expected


def test_the_metadata(tmp_path: Path) -> None:
    write_package(tmp_path, {"eos_token_id": [1, 2], "pad_token_id": 3, "suppress_tokens": [4]})
    read = metadata(tmp_path)
    assert (read.start, read.stops, read.max_tokens) == ((0,), ((1,), (2,)), 16)
    assert (read.pad, read.suppressed, read.sampler) == (3, (4,), Sampler())
    assert read.template == '{% set bos_token = "" %}' + TEMPLATE
    assert read.supports_tools is False


@pytest.mark.parametrize(
    ("generation", "sampler"),
    [
        ({"do_sample": False, "top_k": 5}, Sampler()),
        ({"do_sample": True}, Sampler(TOP_P, 50, 1.0, 1.0)),
        ({"do_sample": True, "top_k": 7, "top_p": 0.5, "temperature": 0.25}, Sampler(TOP_P, 7, 0.5, 0.25)),
        ({"do_sample": True, "top_k": 0}, Sampler(TOP_P, 11, 1.0, 1.0)),  # all of them
    ],
)
def test_the_sampler(tmp_path: Path, generation: dict[str, Any], sampler: Sampler) -> None:
    assert metadata(write_package(tmp_path, generation)).sampler == sampler


def test_config_json_counts_without_a_generation_config(tmp_path: Path) -> None:
    write_package(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"eos_token_id": 5}}))
    assert metadata(tmp_path).stops == ((5,),)


def test_what_litert_lm_has_no_field_for_is_named(tmp_path: Path) -> None:
    write_package(tmp_path, {"repetition_penalty": 1.1, "no_repeat_ngram_size": 0})
    assert metadata(tmp_path).stops == ((11,),)  # LiteRT-LM needs one: the id of no token
    notes = sections_of(tmp_path, 16, 11)[1]
    assert notes == [
        "no file has an eos_token_id: an answer ends with the context",
        "LiteRT-LM's metadata has no field for repetition_penalty: pass it to the runtime",
    ]


def test_a_sentence_piece_vocabulary(tmp_path: Path) -> None:
    write_sentencepiece(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": true}')
    bundle = packed(tmp_path)
    assert bundle.section("SP_Tokenizer") is not None
    assert metadata(tmp_path).start == (1,)
    assert files_of(bundle)["tokenizer.model"] == (tmp_path / "tokenizer.model").read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{", "tokenizer.json is not a tokenizer"),
        ("generation_config.json", b"{", "generation_config.json is not JSON"),
        ("generation_config.json", b"[]", "generation_config.json is not a JSON object"),
        ("generation_config.json", b'{"do_sample": true, "top_k": "x"}', "must be numbers"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja is not UTF-8"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (write_package(tmp_path) / name).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        sections_of(tmp_path, 16, 11)


def foreign(read: LlmMetadata, begins: bool = False) -> Bundle:
    """A file of another program: tokenizer and metadata only."""
    text = word_tokenizer(begins).to_str().encode()
    zipped = len(text).to_bytes(8, "little") + zlib.compress(text)
    return bundle_of(Contents.of("LlmMetadataProto", read.packed()), Contents.of("HF_Tokenizer_Zlib", zipped))


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("start", [(0,), "<s>"])
def test_the_start_token_of_another_program(start: Any, begins: bool) -> None:
    files = files_of(foreign(LlmMetadata(start=start), begins))
    tokenizer = tokenizers.Tokenizer.from_buffer(files["tokenizer.json"])
    assert tokenizer.encode("a b").ids == [0, 3, 4]
    assert json.loads(files["tokenizer_config.json"]) == {"bos_token": "<s>"}


def test_the_settings_of_another_program() -> None:
    read = LlmMetadata(
        stops=((1,), "<u>", (3, 4)), template="T", sampler=Sampler(TOP_P, 4, 0.5, 0.5), suppressed=(5,)
    )
    files = files_of(foreign(read))
    assert files["chat_template.jinja"] == b"T"
    assert json.loads(files["generation_config.json"]) == {
        "eos_token_id": [1, 2],
        "stop_strings": ["a b"],
        "suppress_tokens": [5],
        "do_sample": True,
        "top_k": 4,
        "top_p": 0.5,
        "temperature": 0.5,
    }


def test_a_sentence_piece_vocabulary_of_another_program(tmp_path: Path) -> None:
    data = (write_sentencepiece(tmp_path) / "tokenizer.model").read_bytes()
    read = LlmMetadata(start=(1,), stops=("</s>",))
    files = files_of(
        bundle_of(Contents.of("LlmMetadataProto", read.packed()), Contents.of("SP_Tokenizer", data))
    )
    assert json.loads(files["tokenizer_config.json"]) == {"add_bos_token": True, "bos_token": "<s>"}
    assert json.loads(files["generation_config.json"])["eos_token_id"] == [2]


def test_damaged_sections() -> None:
    good = zlib.compress(b"{}")
    for data in (b"", b"short", (3).to_bytes(8, "little") + good, (2).to_bytes(8, "little") + good[:-3]):
        with pytest.raises(ModelError, match=r"x.litertlm: damaged: its tokenizer"):
            files_of(bundle_of(Contents.of("HF_Tokenizer_Zlib", data)))
    archive = Contents.of("GenericBinaryData", b"PK", {"o2o.content": "package files"})
    with pytest.raises(ModelError, match=r"x.litertlm: damaged: its package files"):
        files_of(bundle_of(archive))
