"""Vocabularies: `tokenizer.json`, `tokenizer.model`, or `vocab.json` with `merges.txt`.

A SentencePiece model becomes a model of the library `tokenizers`, as transformers 5 converts it. The class of
the tokenizer may replace the steps around it. The ids then are those of transformers. Those of the library
`sentencepiece` can differ, for example for runs of spaces.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers

from o2o.errors import ModelError
from runtime_py.text.files import Place

BYTE_PAIR_FILES = ("vocab.json", "merges.txt")
FILES = ("tokenizer.json", "tokenizer.model")
_CONTROL, _USER_DEFINED = 3, 4
"""Types of SentencePiece pieces that become added tokens."""
_UNIGRAM = 1


@dataclass
class Vocabulary:
    """A vocabulary, and what its file says about special tokens.

    Attributes:
        tokenizer: The vocabulary's model, with the steps around it that the file describes.
        added: The added tokens of `tokenizer.json`, by id.
        extra: The special tokens of `tokenizer.model`.
        roles: Default token by role.
        complete: Whether the file describes normalization and the adding of begin and end tokens.
    """

    tokenizer: tokenizers.Tokenizer
    added: dict[int, AddedToken] = field(default_factory=dict)
    extra: list[AddedToken] = field(default_factory=list)
    roles: dict[str, str] = field(default_factory=dict)
    complete: bool = False


def has_vocabulary(directory: Place, as_byte_pairs: bool) -> bool:
    """Check for a vocabulary.

    Args:
        directory: A folder.
        as_byte_pairs: As for `read_vocabulary`.

    Returns:
        Whether `read_vocabulary` finds its files.
    """
    pairs = as_byte_pairs and all((directory / name).exists() for name in BYTE_PAIR_FILES)
    return pairs or any((directory / name).exists() for name in FILES)


def read_vocabulary(directory: Place, added: Mapping[str, Any] | None, as_byte_pairs: bool) -> Vocabulary:
    """Read the vocabulary of a tokenizer.

    Args:
        directory: The tokenizer's folder.
        added: `added_tokens_decoder` of `tokenizer_config.json`. It may rename pieces of `tokenizer.model`.
        as_byte_pairs: Read `tokenizer.model` as pairs to merge, whatever its own type is. Only then do
            `vocab.json` and `merges.txt` count.

    Returns:
        The vocabulary.

    Raises:
        ModelError: There is none, or it is damaged.
    """
    if (path := directory / "tokenizer.json").exists():
        return _tokenizer_json(path)
    if (path := directory / "tokenizer.model").exists():
        return _sentence_piece(path, added or {}, as_byte_pairs)
    if has_vocabulary(directory, as_byte_pairs):
        return _byte_pairs(*(directory / name for name in BYTE_PAIR_FILES))
    raise ModelError(
        f"{directory} has no {' and no '.join(FILES)}: copy it there from the checkpoint, or "
        f"give the checkpoint's folder with --tokenizer"
    )


def _tokenizer_json(path: Place) -> Vocabulary:
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(path.read_bytes())
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"{path} is not a tokenizer: {_line(error)}") from error
    padding = tokenizer.padding
    tokenizer.no_padding()
    tokenizer.no_truncation()
    roles = {"pad_token": padding["pad_token"]} if padding else {}
    return Vocabulary(tokenizer, tokenizer.get_added_tokens_decoder(), roles=roles, complete=True)


def _byte_pairs(vocab: Place, merges: Place) -> Vocabulary:
    try:
        return Vocabulary(tokenizers.Tokenizer(models.BPE.from_file(str(vocab), str(merges))))
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"{vocab} and {merges.name} are not a vocabulary: {_line(error)}") from error


def _sentence_piece(path: Place, added: Mapping[str, Any], as_byte_pairs: bool) -> Vocabulary:
    from sentencepiece import sentencepiece_model_pb2 as schema

    proto = schema.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf raises classes of its own
        raise ModelError(f"{path} is not a SentencePiece model: {_line(error)}") from error
    if not proto.pieces:
        raise ModelError(f"{path} is not a SentencePiece model: it has no pieces")
    pieces = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    trainer = proto.trainer_spec
    extra = [
        AddedToken(piece.piece, normalized=False, special=piece.type == _CONTROL)
        for piece in proto.pieces
        if piece.type in (_CONTROL, _USER_DEFINED)
    ]
    try:
        if as_byte_pairs:
            tokenizer = tokenizers.Tokenizer(models.BPE(vocab=pieces, merges=_merges(pieces)))
            return Vocabulary(tokenizer, extra=extra)
        if trainer.model_type == _UNIGRAM:
            scores = [(piece.piece, piece.score) for piece in proto.pieces]
            unigram = models.Unigram(scores, unk_id=trainer.unk_id, byte_fallback=trainer.byte_fallback)
            tokenizer = tokenizers.Tokenizer(unigram)
        else:
            merges = _merges(pieces)
            _rename(pieces, added)
            tokenizer = tokenizers.Tokenizer(
                models.BPE(
                    vocab=pieces,
                    merges=merges,
                    unk_token=trainer.unk_piece,
                    fuse_unk=True,
                    byte_fallback=trainer.byte_fallback,
                )
            )
        tokenizer.normalizer, tokenizer.decoder = _sentence_piece_steps(proto)
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"{path}: the SentencePiece model cannot be read: {_line(error)}") from error
    named = {
        "bos_token": (trainer.bos_id, trainer.bos_piece),
        "eos_token": (trainer.eos_id, trainer.eos_piece),
        "unk_token": (trainer.unk_id, trainer.unk_piece),
    }
    roles = {role: piece for role, (number, piece) in named.items() if number >= 0}
    return Vocabulary(tokenizer, extra=extra, roles=roles)


def _sentence_piece_steps(proto: Any) -> tuple[normalizers.Normalizer, decoders.Decoder]:
    """Return the normalizer and the decoder that a SentencePiece model describes.

    transformers 5 leaves out the leading space and the removal of spaces, with which the model was trained.
    """
    spec = proto.normalizer_spec
    normalizing: list[Any] = []
    decoding: list[Any] = [decoders.Replace("▁", " ")]
    if proto.trainer_spec.byte_fallback:
        decoding += [decoders.ByteFallback(), decoders.Fuse()]
    if spec.precompiled_charsmap:
        normalizing.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        normalizing += [
            normalizers.Replace(Regex("^ +| +$"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    if spec.add_dummy_prefix:
        normalizing.append(normalizers.Prepend("▁"))
        decoding += [decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    normalizing.append(normalizers.Replace(" ", "▁"))
    return normalizers.Sequence(normalizing), decoders.Sequence(decoding)


def _merges(pieces: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return the pairs that make each piece: pieces by id, then pairs by the length of the left half."""
    return [
        (piece[:index], piece[index:])
        for piece in sorted(pieces, key=pieces.__getitem__)
        for index in range(1, len(piece))
        if piece[:index] in pieces and piece[index:] in pieces
    ]


def _rename(pieces: dict[str, int], added: Mapping[str, Any]) -> None:
    """Give a piece the text of the added token with its id: vocabularies reserve pieces for tokens."""
    texts = {number: piece for piece, number in pieces.items()}
    for key, token in added.items():
        before, text = texts.get(int(key)), token["content"]
        if before and before != text and text not in pieces:
            pieces[text] = pieces.pop(before)
            texts[int(key)] = text


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
