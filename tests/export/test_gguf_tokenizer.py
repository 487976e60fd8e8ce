"""The tokenizer of a GGUF file has the ids of the tokenizer that the file was made of."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from export.gguf_tokenizer import write_tokenizer
from o2o.weights.gguf_file import GgufFile, read_gguf
from runtime_py.text.tokenizer import load_tokenizer
from tests.conftest import ROOT

DEMO = ROOT / "tinyllama" / "demo" / "checkpoint"
TEXTS = ["Once upon a time, there was", "  two spaces", "naïve 12345 ...", "a\n\nb", "<s>x</s>", "日本"]


def gguf_of(path: Path, **fields: object) -> GgufFile:
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in fields.items():
        key = f"tokenizer.{name}" if name == "chat_template" else f"tokenizer.ggml.{name}"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)  # type: ignore[arg-type]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read_gguf(path)


def written(file: GgufFile, folder: Path) -> Path:
    folder.mkdir()
    assert write_tokenizer(file, folder) is None
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


def test_sentence_piece(tmp_path: Path) -> None:
    model = sentencepiece.SentencePieceProcessor(str(DEMO / "tokenizer.model"))
    ids = range(model.vocab_size())
    kinds = [
        2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1 for i in ids
    ]
    file = gguf_of(
        tmp_path / "a.gguf",
        model="llama",
        tokens=[model.id_to_piece(i) for i in ids],
        scores=[model.get_score(i) for i in ids],
        token_type=kinds,
        bos_token_id=model.bos_id(),
        eos_token_id=model.eos_id(),
        unknown_token_id=model.unk_id(),
        chat_template="{{ messages[0].content }}",
    )
    folder = written(file, tmp_path / "out")
    ours, theirs = load_tokenizer(folder), load_tokenizer(DEMO)
    for text in TEXTS:
        if not text.startswith((" ", "<")):  # transformers' converter adds no other space there
            assert ours.encode(text) == theirs.encode(text), text
            assert ours.decode(ours.encode(text)) == text
    assert (folder / "chat_template.jinja").read_text() == "{{ messages[0].content }}"


@pytest.mark.parametrize("add_bos", [True, False, None])
def test_byte_pairs(tmp_path: Path, add_bos: bool | None) -> None:
    own = tokenizers.Tokenizer(models.BPE())
    own.pre_tokenizer, own.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|begin|>", "<|end|>"]
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=special)
    own.train_from_iterator(TEXTS * 5, trainer)
    data = json.loads(own.to_str())["model"]
    tokens = sorted(data["vocab"], key=data["vocab"].get)
    fields = {} if add_bos is None else {"add_bos_token": add_bos}
    file = gguf_of(
        tmp_path / "a.gguf",
        model="gpt2",
        pre="gpt-2",
        tokens=tokens,
        merges=[" ".join(pair) for pair in data["merges"]],
        token_type=[3 if token in special else 1 for token in tokens],
        bos_token_id=0,
        eos_token_id=1,
        **fields,
    )
    ours = load_tokenizer(written(file, tmp_path / "out"))
    for text in [*TEXTS, "a<|end|>b"]:
        assert ours.encode(text) == [0] * bool(add_bos) + own.encode(text).ids, text
        assert ours.decode(ours.encode(text, special=False)) == text.replace("<|end|>", "")


def test_a_file_without_a_usable_tokenizer(tmp_path: Path) -> None:
    assert "has no tokenizer" in str(write_tokenizer(gguf_of(tmp_path / "a.gguf"), tmp_path))
    reason = write_tokenizer(gguf_of(tmp_path / "b.gguf", model="rwkv", tokens=["a"]), tmp_path)
    assert "cannot convert its tokenizer 'rwkv'" in str(reason)
    assert "\n" not in str(reason)
