"""`--tokenizer ids`: texts are numbers, encoded, decoded and streamed as such."""

from __future__ import annotations

import pytest

from o2o.errors import UsageError
from runtime_py.text.detokenizer import Detokenizer
from runtime_py.text.tokenizer.token_ids import TokenIds


def test_encoding_and_decoding() -> None:
    tokenizer = TokenIds()
    assert tokenizer.encode(" 1 403,  407\n0") == [1, 403, 407, 0]
    assert tokenizer.decode([1, 403, 407, 0]) == "1 403 407 0"
    assert tokenizer.encode("") == []


@pytest.mark.parametrize("text", ["1 two 3", "-1", "1.5", "٣"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no token id"):
        TokenIds().encode(text)


def test_a_stream_is_the_text_of_all_ids() -> None:
    tokenizer = TokenIds()
    ids = [*range(40), 7, 7, 511, 0]
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(token) for token in ids] + [detokenizer.flush()]
    assert "".join(pieces) == tokenizer.decode(ids)
