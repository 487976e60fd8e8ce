"""Pieces of text make the text of all tokens. Real tokenizers: test_tokenizer.py."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from runtime_py.text.detokenizer import REPLACEMENT, Detokenizer


@given(st.lists(st.sampled_from([" ", " ", "  a", "b", " c", "\n", "d "])))
def test_pieces_make_the_text_when_all_leading_spaces_go(words):
    class Stripping:
        def decode(self, ids):
            return "".join(words[i] for i in ids).lstrip(" ")

        def is_hidden(self, token):
            return False

        is_byte = is_hidden

    detokenizer = Detokenizer(Stripping())
    pieces = [detokenizer.push(token) for token in range(len(words))]
    assert "".join([*pieces, detokenizer.flush()]) == "".join(words).lstrip(" ")


class Bytes:
    """Each id is a byte; 0 is hidden."""

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def is_hidden(self, token: int) -> bool:
        return token == 0

    def is_byte(self, token: int) -> bool:
        return False


def test_a_character_comes_with_its_last_byte():
    detokenizer = Detokenizer(Bytes())
    assert [detokenizer.push(byte) for byte in "a\u00e9".encode()] == ["a", "", "\u00e9"]
    assert detokenizer.flush() == ""


def test_hidden_tokens_have_no_text_and_an_unfinished_character_comes_at_the_end():
    detokenizer = Detokenizer(Bytes())
    assert [detokenizer.push(byte) for byte in (0, "\u00e9".encode()[0])] == ["", ""]
    assert detokenizer.flush() == REPLACEMENT


@given(st.lists(st.sampled_from([" ", "  a", "b", " c", "\n"])), st.booleans())
def test_a_text_that_continues_another_keeps_its_leading_space(words, continues):
    class Stripping:
        def encode(self, text, special):
            return [len(words)]

        def decode(self, ids):
            return "".join([*words, " 0"][i] for i in ids).lstrip(" ")

        def is_hidden(self, token):
            return False

        is_byte = is_hidden

    detokenizer = Detokenizer(Stripping(), continues)
    text = "".join([*map(detokenizer.push, range(len(words))), detokenizer.flush()])
    assert text == "".join(words).lstrip("" if continues else " ")
