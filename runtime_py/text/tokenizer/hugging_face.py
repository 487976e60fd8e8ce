"""`tokenizer.json`, by the library `tokenizers`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, pre_tokenizers

from o2o.errors import ModelError
from runtime_py.text.tokenizer import special_names

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class HuggingFaceTokenizer:
    """A `runtime_py.text.tokenizer.Tokenizer` for `tokenizer.json`.

    As in transformers 5, this file decides which begin and end tokens are added, not `tokenizer_config.json`.
    transformers' one exception also applies: see `_is_llama`.
    """

    def __init__(self, path: Path, config: dict[str, Any], model_type: str | None = None) -> None:
        """Load a tokenizer.

        Args:
            path: `tokenizer.json`.
            config: The content of `tokenizer_config.json`.
            model_type: `model_type` of `config.json`.

        Raises:
            ModelError: `path` is not a tokenizer.
        """
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ModelError(f"{path} is not a tokenizer: {error}") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        if _is_llama(tokenizer, config, model_type):
            _make_llama(tokenizer, config)
        declared = {tokenizer.token_to_id(name): name for name in special_names(config)}
        known = {None, *_special_ids(tokenizer)}  # adding a token again would reset its treatment of spaces
        tokenizer.add_special_tokens([name for token, name in declared.items() if token not in known])
        self._tokenizer = tokenizer
        self._special = _special_ids(tokenizer)
        self._bytes = set()
        if "ByteFallback" in repr(tokenizer.decoder):
            vocab = tokenizer.get_vocab(with_added_tokens=False)
            self._bytes = {token for piece, token in vocab.items() if _BYTE.fullmatch(piece)}

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=False)

    def encode(self, text: str, special: bool = True) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=special).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def is_hidden(self, token: int) -> bool:
        return token in self._special or self._tokenizer.id_to_token(token) is None

    def is_byte(self, token: int) -> bool:
        """See `Tokenizer`. One invalid byte turns its whole run into replacement characters."""
        return token in self._bytes


def _special_ids(tokenizer: tokenizers.Tokenizer) -> set[int]:
    return {token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special}


def _is_llama(tokenizer: tokenizers.Tokenizer, config: dict[str, Any], model_type: str | None) -> bool:
    """Whether transformers 5 reads only the vocabulary from the file.

    It does so if `LlamaTokenizer` is declared, unless the file is byte-level (Llama 3). A prompt that begins
    with a space then gets no second one.
    """
    declared = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    byte_level = "ByteLevel" in repr(tokenizer.pre_tokenizer) or "ByteLevel" in repr(tokenizer.decoder)
    return declared == "LlamaTokenizer" and model_type in (None, "llama") and not byte_level


def _make_llama(tokenizer: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
    spaced = config.get("add_prefix_space") is not False
    scheme = ("always" if config.get("legacy") else "first") if spaced else "never"
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if spaced:
        steps.append(decoders.Strip(content=" ", left=1))
    tokenizer.decoder = decoders.Sequence(steps)
