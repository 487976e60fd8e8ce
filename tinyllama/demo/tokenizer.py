"""The demo's vocabulary, trained and written in the two formats of Llama checkpoints.

``tokenizer.model`` is a SentencePiece BPE model with Llama 2's options: identity normalization, a dummy
prefix space, digits split, byte fallback. ``tokenizer.json`` is the same model for the ``tokenizers``
library. Both give equal ids for any text without the literal strings ``<unk>``, ``<s>`` and ``</s>``.
SentencePiece encodes these as plain text. ``tokenizers`` turns them into special tokens, as for Llama 2.
"""

from __future__ import annotations

import io
import json
import string
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE

UNK, BOS, EOS = "<unk>", "<s>", "</s>"
UNK_ID, BOS_ID, EOS_ID = 0, 1, 2
# Neither tokenizer produces it, because of byte fallback: it is free for padding.
PAD_ID = UNK_ID

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def train_vocabulary(texts: Iterable[str], vocab_size: int) -> bytes:
    """Train a SentencePiece model, with ids 0, 1, 2 as in Llama 2.

    The texts and the model pass through memory: the model records the file names of its training.

    Args:
        texts: The training texts.
        vocab_size: The exact number of pieces.

    Returns:
        The serialized model.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        split_digits=True,
        byte_fallback=True,
        character_coverage=1.0,
        # Prompts may contain characters that no story has: printable ASCII gets pieces of its own.
        required_chars=string.ascii_letters + string.digits + string.punctuation,
        unk_id=UNK_ID,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        pad_id=-1,
        unk_piece=UNK,
        bos_piece=BOS,
        eos_piece=EOS,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def _merges(pieces: dict[str, int], mergeable: Iterable[str]) -> list[tuple[str, str]]:
    """All ways to put a piece together from two others, the earliest piece first.

    SentencePiece merges whichever neighbors form the piece of the best score, and a BPE piece's score falls
    with its id; ``tokenizers`` merges the listed pair of the lowest rank. Listing *every* split of every
    mergeable piece in id order makes the two agree.
    """
    merges = []
    for piece in sorted(mergeable, key=pieces.__getitem__):
        splits = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        pairs = [(left, right) for left, right in splits if left in pieces and right in pieces]
        merges += sorted(pairs, key=lambda pair: (pieces[pair[0]], pieces[pair[1]]))
    return merges


def convert(model: bytes) -> Tokenizer:
    """Convert a model of :func:`train_vocabulary` to the ``tokenizers`` library.

    Args:
        model: The serialized model.

    Returns:
        The tokenizer; it adds ``<s>`` in front.
    """
    spm = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids = range(spm.get_piece_size())
    pieces = {spm.id_to_piece(i): i for i in ids}
    plain = [
        spm.id_to_piece(i) for i in ids if not (spm.is_control(i) or spm.is_unknown(i) or spm.is_byte(i))
    ]
    merges = _merges({piece: pieces[piece] for piece in plain}, (piece for piece in plain if len(piece) > 1))
    tokenizer = Tokenizer(BPE(vocab=pieces, merges=merges, unk_token=UNK, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, BOS_ID)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (UNK, BOS, EOS)])
    return tokenizer


def write(model: bytes, folder: Path, max_length: int) -> Tokenizer:
    """Write ``tokenizer.model``, ``tokenizer.json`` and two config files.

    Args:
        model: The serialized model.
        folder: The folder to write into.
        max_length: The model's number of positions.

    Returns:
        The tokenizer.
    """
    tokenizer = convert(model)
    (folder / "tokenizer.model").write_bytes(model)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    specials = {"bos_token": BOS, "eos_token": EOS, "unk_token": UNK, "pad_token": UNK}
    config: dict[str, Any] = {
        "add_bos_token": True,
        "add_eos_token": False,
        **specials,
        "clean_up_tokenization_spaces": False,
        "legacy": True,
        "model_max_length": max_length,
        "padding_side": "right",
        # Not LlamaTokenizer: in transformers 5 that class rebuilds its own pre-tokenizer, which gives a text
        # with a leading space one space too few. This one takes tokenizer.json as it is.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", specials)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return tokenizer
