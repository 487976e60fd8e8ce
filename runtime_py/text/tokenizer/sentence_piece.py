"""`tokenizer.model`, a SentencePiece model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as schema

from o2o.errors import ModelError
from runtime_py.text.tokenizer import special_names


class SentencePieceTokenizer:
    """A `runtime_py.text.tokenizer.Tokenizer` over `tokenizer.model`.

    Special tokens that the text spells out become their ids, and each stretch between them gets a space in
    front, if the model was trained so. `add_bos_token` and `add_eos_token` default to false.

    With `"tokenizer_class": "LlamaTokenizer"` the ids are those of transformers 5, which puts no space before
    a stretch that has one, nor, unless `legacy`, before any but the first.
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        """Raises ModelError when `path` holds no SentencePiece model, or too few of the tokens used."""
        proto = schema.ModelProto()
        try:
            proto.ParseFromString(path.read_bytes())
            normalizer = proto.normalizer_spec
            self._prefix = normalizer.add_dummy_prefix and config.get("add_prefix_space") is not False
            self._collapse = normalizer.remove_extra_whitespaces
            # SentencePiece would put a space before every stretch; `encode` does it where it belongs.
            normalizer.add_dummy_prefix = normalizer.remove_extra_whitespaces = False
            self._model = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        except Exception as error:  # protobuf's and SentencePiece's own kinds
            raise ModelError(f"{path} is not a SentencePiece model: {error}") from error
        added = [int(token) for token in config.get("added_tokens_decoder") or {}]
        if added and max(added) >= self._model.vocab_size():
            raise ModelError(
                f"{path} lacks the added token {max(added)} of tokenizer_config.json: "
                "put the checkpoint's tokenizer.json beside it"
            )
        llama = str(config.get("tokenizer_class", "")).removesuffix("Fast") == "LlamaTokenizer"
        self._prefix_spaced = not llama
        self._prefix_later = not llama or bool(config.get("legacy"))
        self._before = [self._model.bos_id()] if config.get("add_bos_token") else []
        self._after = [self._model.eos_id()] if config.get("add_eos_token") else []
        ids = range(self._model.vocab_size())
        hidden = [token for token in ids if self._model.is_control(token) or self._model.is_unknown(token)]
        special = {self._model.id_to_piece(token): token for token in hidden}
        for name in special_names(config):
            if (token := self._model.piece_to_id(name)) != self._model.unk_id():
                special[name] = token
        self._special = special
        self._special_ids = frozenset(special.values())
        longest_first = sorted(special, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")" if special else "(?!)")

    @property
    def vocab_size(self) -> int:
        return self._model.vocab_size()

    def encode(self, text: str, special: bool = True) -> list[int]:
        ids = list(self._before) if special else []
        for number, part in enumerate(self._split.split(text)):
            if number % 2:
                ids.append(self._special[part])
            elif part:
                ids += self._encode_part(part, first=number == 0)
        return ids + self._after if special else ids

    def _encode_part(self, part: str, first: bool) -> list[int]:
        if self._collapse:
            part = re.sub(" +", " ", part).strip(" ")
        wanted = (first or self._prefix_later) and (self._prefix_spaced or not part.startswith((" ", "▁")))
        return self._model.encode(" " + part if self._prefix and wanted else part)

    def decode(self, ids: Sequence[int]) -> str:
        text = self._model.decode([token for token in ids if not self.is_hidden(token)])
        return text.removeprefix(" ") if self._prefix else text

    def is_hidden(self, token: int) -> bool:
        return token in self._special_ids or token >= self.vocab_size

    def is_byte(self, token: int) -> bool:
        """SentencePiece decodes every character for itself, so no run has to be waited for."""
        return False
