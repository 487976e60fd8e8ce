"""Tokenizers against transformers', and the texts that come back piece by piece."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o2o.errors import ModelError
from runtime_py.text.detokenizer import Detokenizer
from runtime_py.text.tokenizer import Tokenizer, load_tokenizer
from tests.conftest import ROOT
from tests.runtime_py.tokenizers_on_disk import (
    LLAMA,
    write_byte_level,
    write_config,
    write_llama_json,
    write_sentencepiece,
)

TEXTS = [
    "Lily picked up a flower.",
    "",
    " ",
    "   ",
    " leading",
    "  two leading",
    "trailing ",
    "a  b   c",
    "\n",
    "one\ntwo\n\nthree",
    "\ttab",
    "😀",
    "naïve 😀👩‍👩‍👧 日本語",
    "<s>hi</s>",
    "hi</s> there",
    "<s> hi</s>  you",
    "▁low",
    "12345",
    "\x00\x7f",
    "<unk> and <0x41>",
]

DEMO = ROOT / "tinyllama" / "demo" / "checkpoint"

KINDS = ["model", "model_eos", "model_legacy", "json", "json_prepend", "json_prepend_as_is", "byte_level"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    kinds = {"model": write_config(write_sentencepiece(root / "model"), **LLAMA)}
    for name, extra in (
        ("model_eos", {"add_bos_token": False, "add_eos_token": True}),
        ("model_legacy", {"legacy": True}),
    ):
        kinds[name] = write_config(root / name, **LLAMA | extra)
        (kinds[name] / "tokenizer.model").write_bytes((root / "model" / "tokenizer.model").read_bytes())
    kinds["json"] = write_llama_json(root / "json", kinds["model"])
    kinds["json_prepend"] = write_llama_json(root / "json_prepend", kinds["model"], prepend=True)
    kinds["json_prepend_as_is"] = write_llama_json(root / "json_prepend_as_is", kinds["model"], prepend=True)
    write_config(kinds["json_prepend_as_is"], **LLAMA | {"tokenizer_class": "PreTrainedTokenizerFast"})
    kinds["byte_level"] = write_byte_level(root / "byte_level")
    return kinds


@pytest.fixture(scope="module")
def ours(folders) -> dict[str, Tokenizer]:
    return {kind: load_tokenizer(folder) for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def theirs(folders):
    from transformers import AutoTokenizer

    return {kind: AutoTokenizer.from_pretrained(folder) for kind, folder in folders.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_transformers(kind, ours, theirs):
    for text in TEXTS:
        assert ours[kind].encode(text) == theirs[kind].encode(text), text


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=60)
@given(text=st.text(st.sampled_from(" \nLilyabc.▁é😀</s>0"), max_size=20) | st.text(max_size=8))
def test_ids_of_any_text(kind, text, ours, theirs):
    assert ours[kind].encode(text) == theirs[kind].encode(text)


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_is_that_of_transformers(kind, ours, theirs):
    for text in TEXTS:
        ids = theirs[kind].encode(text)
        assert ours[kind].decode(ids) == theirs[kind].decode(ids, skip_special_tokens=True), text
        assert ours[kind].vocab_size <= len(theirs[kind])


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_pieces_make_the_text(kind, data, ours):
    """Any ids at all: bytes that make no character, special tokens, spaces first, ids that no text has."""
    tokenizer = ours[kind]
    by_bytes = st.integers(0, 262)  # SentencePiece has its bytes here
    beyond = tokenizer.vocab_size + 7  # a model's vocabulary is often padded
    ids = data.draw(st.lists(st.integers(0, beyond) | by_bytes | st.just(beyond), max_size=30))
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(token) for token in ids]
    assert "".join([*pieces, detokenizer.flush()]) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=60)
@given(text=st.text(st.sampled_from(" \nLily.é😀日"), max_size=20))
def test_no_piece_is_half_a_character(kind, text, ours):
    detokenizer = Detokenizer(ours[kind])
    pieces = [detokenizer.push(token) for token in ours[kind].encode(text)]
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)


@pytest.mark.parametrize("kind", KINDS)
def test_text_comes_as_soon_as_it_is_certain(kind, ours):
    tokenizer = ours[kind]
    detokenizer = Detokenizer(tokenizer)
    ids = tokenizer.encode("She liked to play with her friends")
    pieces = [detokenizer.push(token) for token in ids if not tokenizer.is_hidden(token)]
    assert all(pieces[1:])


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Tokenizer, Tokenizer]:
    """By `tokenizer.json`, and by `tokenizer.model`."""
    folder = tmp_path_factory.mktemp("demo")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (folder / name).write_bytes((DEMO / name).read_bytes())
    return load_tokenizer(DEMO), load_tokenizer(folder)


@settings(deadline=None, max_examples=100)
@given(text=st.text(st.sampled_from(" \nLilyabc.▁é😀</s>0"), max_size=20) | st.sampled_from(TEXTS))
def test_the_demos_two_files_agree(text, demo):
    by_json, by_model = demo
    assert by_json.encode(text) == by_model.encode(text)
    assert by_json.decode(by_json.encode(text)) == by_model.decode(by_json.encode(text))


def test_json_is_preferred(folders, tmp_path):
    for kind, file in (("byte_level", "tokenizer.json"), ("model", "tokenizer.model")):
        (tmp_path / file).write_bytes((folders[kind] / file).read_bytes())
    assert load_tokenizer(tmp_path).vocab_size == load_tokenizer(folders["byte_level"]).vocab_size


def test_special_tokens_that_only_the_config_names_are_left_out(folders, tmp_path):
    content = json.loads((folders["json"] / "tokenizer.json").read_text())
    content["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    write_config(tmp_path, eos_token={"content": "</s>"}, bos_token="<s>")
    assert load_tokenizer(tmp_path).decode([1, 2]) == ""


def test_a_model_that_collapses_spaces(tmp_path):
    """A class of transformers keeps them. Without one, the SentencePiece model decides."""
    folder = write_config(write_sentencepiece(tmp_path, remove_extra_whitespaces=True))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("  a   flower ") == tokenizer.encode("a flower") != []
    assert tokenizer.decode(tokenizer.encode("  a   flower ")) == "a flower"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", b"{", "is not a tokenizer"),
        ("tokenizer.json", b"\x89PNG\r\n", "is not a tokenizer"),
        ("tokenizer.json", b"", "is not a tokenizer"),
        ("tokenizer.model", b"\x89PNG\r\n", "is not a SentencePiece model"),
        ("tokenizer.model", b"", "is not a SentencePiece model"),
        ("tokenizer_config.json", b"[1]", "is not a JSON object"),
        ("tokenizer_config.json", b"{,", "is not JSON"),
        ("README.md", b"", "no tokenizer.json and no tokenizer.model"),
    ],
)
def test_wrong_files_are_told(tmp_path, file, content, message):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load_tokenizer(tmp_path)


def test_a_model_without_its_added_tokens_is_told(folders, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes((folders["model"] / "tokenizer.model").read_bytes())
    write_config(tmp_path, added_tokens_decoder={"2": {"content": "</s>"}, "32001": {"content": "<|user|>"}})
    with pytest.raises(ModelError, match=r"'<\|user\|>' has id 32001, but the next free id is 380"):
        load_tokenizer(tmp_path)
