"""`tokenizer.model`, by the library `sentencepiece`."""

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
    """A `runtime_py.text.tokenizer.Tokenizer` for `tokenizer.model`.

    Special tokens written out in the text are encoded as their ids. Each section between them gets a leading
    space, if the model was trained with one. `add_bos_token` and `add_eos_token` default to false.

    With `"tokenizer_class": "LlamaTokenizer"` the ids are the same as in transformers 5. It adds no space to
    a section that begins with one. Unless `legacy`, it adds one to the first section only.
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        """Load a tokenizer.

        Args:
            path: `tokenizer.model`.
            config: The content of `tokenizer_config.json`.

        Raises:
            ModelError: `path` is not a SentencePiece model, or lacks added tokens.
        """
        proto = schema.ModelProto()
        try:
            proto.ParseFromString(path.read_bytes())
            normalizer = proto.normalizer_spec
            self._prefix = normalizer.add_dummy_prefix and config.get("add_prefix_space") is not False
            self._collapse = normalizer.remove_extra_whitespaces
            # SentencePiece would add a space to every section: `encode` adds it where it belongs.
            normalizer.add_dummy_prefix = normalizer.remove_extra_whitespaces = False
            self._model = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        except Exception as error:  # the libraries raise classes of their own
            raise ModelError(f"{path} is not a SentencePiece model: {error}") from error
        added = [int(token) for token in config.get("added_tokens_decoder") or {}]
        if added and max(added) >= self._model.vocab_size():
            raise ModelError(
                f"{path} lacks the added token {max(added)} of tokenizer_config.json: "
                "copy the checkpoint's tokenizer.json into the same folder"
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
        spaced = (first or self._prefix_later) and (self._prefix_spaced or not part.startswith((" ", "▁")))
        return self._model.encode(" " + part if self._prefix and spaced else part)

    def decode(self, ids: Sequence[int]) -> str:
        text = self._model.decode([token for token in ids if not self.is_hidden(token)])
        return text.removeprefix(" ") if self._prefix else text

    def is_hidden(self, token: int) -> bool:
        return token in self._special_ids or token >= self.vocab_size

    def is_byte(self, token: int) -> bool:
        """See `Tokenizer`. SentencePiece decodes every character separately, never a run as a whole."""
        return False
