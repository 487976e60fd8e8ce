"""Vocabularies: each form of them, and damaged ones. Classes of transformers: test_classes.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from transformers import AutoTokenizer

from o2o.errors import ModelError
from runtime_py.text.tokenizer import has_tokenizer, load_tokenizer
from tests.runtime_py.tokenizers_on_disk import write_byte_level, write_config, write_sentencepiece

TEXTS = [
    "Lily picked up a flower.",
    " two  words",
    "naïve 😀 日本語",
    "12 3\n\n4\t5",
    "trailing  ",
    "ﬁ ①",
    "",
]


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "Qwen2TokenizerFast", "GPTNeoXTokenizer"])
def test_pairs_in_two_files(tmp_path: Path, name: str) -> None:
    write_byte_level(tmp_path)
    vocabulary = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary["vocab"]))
    merges = [" ".join(pair) for pair in vocabulary["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    write_config(tmp_path, tokenizer_class=name)
    assert has_tokenizer(tmp_path)
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert ours.special_tokens == theirs.special_tokens_map
    for text in (*TEXTS, "a<|endoftext|> b"):
        assert ours.encode(text) == theirs.encode(text), text
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text), skip_special_tokens=True)
    (tmp_path / "merges.txt").write_text("no merge here\n")
    with pytest.raises(ModelError, match=r"vocab\.json and merges\.txt are not a vocabulary: [^\n]+$"):
        load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").unlink()
    assert not has_tokenizer(tmp_path)


def test_pairs_of_an_unknown_class_are_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("")
    write_config(tmp_path, tokenizer_class="NoSuchTokenizer")
    assert not has_tokenizer(tmp_path)
    with pytest.raises(ModelError, match=r"no tokenizer\.json and no tokenizer\.model"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_dummy_prefix": False},
        {"remove_extra_whitespaces": True},
        {"normalization_rule_name": "nmt_nfkc"},
        {"model_type": "unigram", "vocab_size": 320},
        {"model_type": "unigram", "vocab_size": 320, "normalization_rule_name": "nmt_nfkc"},
    ],
)
def test_a_sentence_piece_model_without_a_class(tmp_path: Path, options: dict[str, Any]) -> None:
    """The library `sentencepiece` is the reference: transformers leaves out the leading space."""
    write_sentencepiece(tmp_path, **options)
    ours = load_tokenizer(tmp_path)
    theirs = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    assert ours.vocab_size == theirs.vocab_size()
    assert ours.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    for text in TEXTS:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids), text


def test_added_tokens_rename_reserved_pieces(tmp_path: Path) -> None:
    write_sentencepiece(tmp_path, user_defined_symbols=["<reserved_0>"], add_dummy_prefix=False)
    (token,) = load_tokenizer(tmp_path).encode("<reserved_0>")
    write_config(
        tmp_path,
        tokenizer_class="PreTrainedTokenizerFast",
        added_tokens_decoder={str(token): {"content": "<|im_start|>", "special": True}},
    )
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert ours.encode("a<|im_start|>b").count(token) == 1
    assert ours.is_hidden(token)
    for text in (*TEXTS, "a <|im_start|>  b <reserved_0>"):
        assert ours.encode(text) == theirs.encode(text), text


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n", b"\x0a"])
def test_no_sentence_piece_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ModelError, match=r"tokenizer\.model is not a SentencePiece model: [^\n]+$"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "vocab.json"])
def test_a_folder_in_place_of_a_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / "merges.txt").write_text("")
    write_config(tmp_path, tokenizer_class="GPT2Tokenizer")
    with pytest.raises(ModelError, match=rf"{name}[^\n]* not a [^\n]+$"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b"\xef\xbb\xbf{}", b'{"version": "\xff"}', b"null"],
)
def test_no_tokenizer_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json is not a tokenizer: [^\n]+$"):
        load_tokenizer(tmp_path)
