"""Tokenizers: the files of a package, with the same ids as transformers 5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, processors

from o2o.errors import ModelError, UsageError
from runtime_py.text.files import Place
from runtime_py.text.tokenizer.classes import CLASSES, TokenizerClass, class_of, is_byte_level, merges_pairs
from runtime_py.text.tokenizer.files import read_model_config, read_tokenizer_config
from runtime_py.text.tokenizer.special_tokens import SpecialTokens, read_special_tokens
from runtime_py.text.tokenizer.vocabulary import Vocabulary, has_vocabulary, read_vocabulary


class Tokenizer:
    """Encodes text as token ids, and decodes ids."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, special_tokens: Mapping[str, str]) -> None:
        """Use a tokenizer.

        Args:
            tokenizer: A tokenizer of the library `tokenizers`, with all added tokens.
            special_tokens: Text by role, such as `bos_token`.
        """
        self.special_tokens = dict(special_tokens)
        """The text of the special tokens that have a role, by role. Chat templates see them."""
        self._tokenizer = tokenizer
        self._added = tokenizer.get_added_tokens_decoder()
        self._special = {token for token, added in self._added.items() if added.special}
        falls_back = "ByteFallback" in repr(tokenizer.decoder)
        pieces = [f"<0x{byte:02X}>" for byte in range(256)] if falls_back else []
        self._bytes = {tokenizer.token_to_id(piece) for piece in pieces} - {None}

    @property
    def vocab_size(self) -> int:
        """The number of ids, without added tokens."""
        return self._tokenizer.get_vocab_size(with_added_tokens=False)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Encode a text.

        Args:
            text: The text.
            special: Add the begin and end tokens that this tokenizer adds.

        Returns:
            The token ids.

        Raises:
            UsageError: The text is not UTF-8: it has a lone surrogate. Or the tokenizer has no token for a
                character, and no token for unknown ones.
        """
        try:
            text.encode()  # the library does not say which character is wrong
            return self._tokenizer.encode(text, add_special_tokens=special).ids
        except UnicodeEncodeError as error:
            raise UsageError(f"the text is not UTF-8: it has {_surrogate(text[error.start])}") from error
        except Exception as error:  # the library raises bare Exception
            raise UsageError(f"the tokenizer cannot encode the text: {error}") from error

    def decode(self, ids: Sequence[int]) -> str:
        """Decode token ids.

        Args:
            ids: Token ids.

        Returns:
            Their text, without hidden tokens.
        """
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    @property
    def num_ids(self) -> int:
        """The number of ids, with added tokens."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def is_byte_level(self) -> bool:
        """Whether the pieces write bytes as characters, as GPT-2 does."""
        return is_byte_level(self._tokenizer)

    def piece(self, token: int) -> str | None:
        """Return the piece of the vocabulary that a token is.

        Args:
            token: An id.

        Returns:
            The piece as the vocabulary writes it; None if no token has the id.
        """
        return self._tokenizer.id_to_token(token)

    def token_id(self, piece: str) -> int | None:
        """Return the id of a piece of the vocabulary.

        Args:
            piece: The piece as the vocabulary writes it.

        Returns:
            Its id; None if there is no such piece.
        """
        return self._tokenizer.token_to_id(piece)

    def is_added(self, token: int) -> bool:
        """Check for an added token, whose piece is its text.

        Args:
            token: An id.

        Returns:
            Whether it was added to the vocabulary.
        """
        return token in self._added

    def is_hidden(self, token: int) -> bool:
        """Check whether `decode` omits a token.

        Args:
            token: An id.

        Returns:
            Whether it is a special token, or the id of no token.
        """
        return token in self._special or self._tokenizer.id_to_token(token) is None

    def is_byte(self, token: int) -> bool:
        """Check for a byte token. A run of byte tokens is decoded as a whole.

        One invalid byte changes the text of its whole run into replacement characters.

        Args:
            token: An id.

        Returns:
            Whether its text depends on the tokens after it.
        """
        return token in self._bytes


def _surrogate(character: str) -> str:
    """Name a lone surrogate. Python decodes a byte that is not UTF-8 as one."""
    code = ord(character)
    return (
        f"the byte 0x{code - 0xDC00:02X}" if 0xDC80 <= code <= 0xDCFF else f"the lone surrogate U+{code:04X}"
    )


def has_tokenizer(directory: Place) -> bool:
    """Check for a tokenizer.

    Args:
        directory: A package's folder.

    Returns:
        Whether it has the files that `load_tokenizer` needs.

    Raises:
        ModelError: A configuration file is damaged, or a value in it has the wrong type.
    """
    return has_vocabulary(directory, as_byte_pairs=_class(directory, byte_level=False) is not None)


def load_tokenizer(directory: Place) -> Tokenizer:
    """Load a package's tokenizer.

    The vocabulary is `tokenizer.json`, else `tokenizer.model`, else `vocab.json` with `merges.txt`.

    The ids are those of transformers 5 if the tokenizer's class is in `runtime_py.text.tokenizer.classes`.
    Another class works as `tokenizer.json` says, which is the same if the class has no steps of its own.
    Without that file it works as the SentencePiece model says; transformers 5 then adds no leading space.

    `clean_up_tokenization_spaces` has no effect, as in transformers for byte-pair encoding.

    Args:
        directory: The package's folder.

    Returns:
        The tokenizer.

    Raises:
        ModelError: There is no vocabulary, a file is damaged, or a value in it has the wrong type.
    """
    config = read_tokenizer_config(directory)
    tokenizer_class = _class(directory, byte_level=False)
    vocabulary = read_vocabulary(
        directory, config.get("added_tokens_decoder"), as_byte_pairs=tokenizer_class is not None
    )
    if is_byte_level(vocabulary.tokenizer):
        tokenizer_class = _class(directory, byte_level=True)
    special = read_special_tokens(directory, config, vocabulary.added, vocabulary.extra)
    special.set_defaults({**vocabulary.roles, **(tokenizer_class.roles if tokenizer_class else {})})
    if tokenizer_class and merges_pairs(vocabulary.tokenizer):
        tokenizer = _with_steps(tokenizer_class, vocabulary, config)
    else:
        tokenizer = vocabulary.tokenizer
    tokenizer.encode_special_tokens = bool(config.get("split_special_tokens"))
    try:
        special.add_to(tokenizer)
    except ModelError as error:
        raise ModelError(f"{directory}: {error}") from error
    if tokenizer_class and tokenizer_class.plain_special_tokens:
        texts = [*special.texts().values(), *map(str, special.extra)]
        tokenizer.add_tokens([AddedToken(text, special=True) for text in texts])
    _set_post_processor(tokenizer, tokenizer_class, vocabulary.complete, config, special)
    return Tokenizer(tokenizer, special.texts())


def _class(directory: Place, byte_level: bool) -> TokenizerClass | None:
    """Return the class of a tokenizer; None if it has no steps of its own."""
    name = class_of(read_tokenizer_config(directory), read_model_config(directory), byte_level)
    return CLASSES.get(name)


def _with_steps(
    tokenizer_class: TokenizerClass, vocabulary: Vocabulary, config: Mapping[str, Any]
) -> tokenizers.Tokenizer:
    """Return a tokenizer with the steps of its class. Of the vocabulary's file, the post-processor stays."""
    tokenizer = tokenizers.Tokenizer(vocabulary.tokenizer.model)
    tokenizer_class.steps(tokenizer, config)
    if (processor := vocabulary.tokenizer.post_processor) is not None:
        tokenizer.post_processor = processor
    return tokenizer


def _set_post_processor(
    tokenizer: tokenizers.Tokenizer,
    tokenizer_class: TokenizerClass | None,
    complete: bool,
    config: Mapping[str, Any],
    special: SpecialTokens,
) -> None:
    """Set which begin and end tokens are added.

    `tokenizer.json` decides. `add_bos_token` and `add_eos_token` of `tokenizer_config.json` count without it.
    """
    flags = {} if complete else {name: config.get(name) for name in ("add_bos_token", "add_eos_token")}
    default = bool(tokenizer_class and tokenizer_class.add_bos_token)
    own = default or bool(tokenizer_class and tokenizer_class.own_post_processor)
    if complete and tokenizer.post_processor is not None and not own:
        return
    add_bos = flags.get("add_bos_token")
    texts = special.texts()
    begin = texts.get("bos_token", "") if (default if add_bos is None else add_bos) else ""
    end = texts.get("eos_token", "") if flags.get("add_eos_token") else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[step for step in (begin, "$A", end) if step],
        special_tokens=[(text, tokenizer.token_to_id(text)) for text in {begin, end} if text],
    )
