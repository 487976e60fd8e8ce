"""The bytes of tokens: of bytes, of pieces with spaces, of special tokens."""

from __future__ import annotations

from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models

from runtime_py.text.token_bytes import TokenBytes
from runtime_py.text.tokenizer import Tokenizer, load_tokenizer
from runtime_py.text.tokenizer.token_ids import TokenIds
from tests.conftest import ROOT
from tests.runtime_py.tokenizers_on_disk import write_characters


def test_byte_level_pieces(tmp_path: Path) -> None:
    write_characters(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    token_bytes = TokenBytes(tokenizer)
    ids = tokenizer.encode("a é\n")
    assert [token_bytes(id) for id in ids] == [b"<s>", b"a", b" ", b"\xc3", b"\xa9", b"\n"]
    assert [token_bytes.shown(id) for id in ids[:2]] == [b"", b"a"]
    assert token_bytes.text(ids[3]) == "\N{REPLACEMENT CHARACTER}"
    assert token_bytes(9999) == b""


def test_pieces_with_a_space_and_bytes() -> None:
    pieces = {"<unk>": 0, "<0x0A>": 1, "▁a": 2, "<0x0B>x": 3}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(pieces, "<unk>"))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens([AddedToken("▁<tool>", special=False)])
    token_bytes = TokenBytes(Tokenizer(tokenizer, {}))
    assert [token_bytes(id) for id in range(1, 5)] == [b"\n", b" a", b"<0x0B>x", "▁<tool>".encode()]


def test_numbers() -> None:
    assert TokenBytes(TokenIds())(12) == b" 12"


def test_together_they_are_the_text() -> None:
    package = ROOT / "tinyllama" / "demo" / "checkpoint"
    tokenizer = load_tokenizer(package)
    text = "Once upon a time — ünïcode\n\n  spaces 日本"
    token_bytes = TokenBytes(tokenizer)
    ids = tokenizer.encode(text, special=False)
    assert b"".join(map(token_bytes, ids)).decode().lstrip() == text
