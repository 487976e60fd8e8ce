"""Checkpoint folders with a tokenizer, trained on the spot."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

LLAMA = {
    "tokenizer_class": "LlamaTokenizer",
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
}

_WORDS = """
Lily picked up a flower She liked to play with her friends in the park and run jump little girl
named Tim was happy sad big small dog cat said hello mom dad one day they went
"""


def corpus() -> list[str]:
    rng, words = random.Random(0), _WORDS.split()
    return [" ".join(rng.choices(words, k=12)) + rng.choice([".", "!", "?", ' "hi"']) for _ in range(300)]


def write_config(directory: Path, **config: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def write_sentencepiece(directory: Path, **options: Any) -> Path:
    """`tokenizer.model`: byte-level fallback, every space kept, as Llama's is."""
    import sentencepiece

    directory.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": 380,
        "byte_fallback": True,
        "character_coverage": 1.0,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "split_digits": True,
        "minloglevel": 2,
        **options,
    }
    train = sentencepiece.SentencePieceTrainer.train
    with open(directory / "tokenizer.model", "wb") as sink:
        train(sentence_iterator=iter(corpus()), model_writer=sink, **settings)
    return directory


def write_llama_json(directory: Path, source: Path, *, prepend: bool = False) -> Path:
    """`tokenizer.json` with the pieces of `source`'s `tokenizer.model`, and begin-of-sequence added.

    prepend: as older converters wrote it, a space put before any text, even one that begins with a space.
    """
    from transformers import LlamaTokenizer

    directory.mkdir(parents=True, exist_ok=True)
    LlamaTokenizer.from_pretrained(source).save_pretrained(directory)
    if prepend:
        path = directory / "tokenizer.json"
        content = json.loads(path.read_text())
        steps = [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]
        content["normalizer"] = {"type": "Sequence", "normalizers": steps}
        content["pre_tokenizer"] = None
        path.write_text(json.dumps(content))
    return directory


def write_byte_level(directory: Path) -> Path:
    """`tokenizer.json` in the manner of GPT-2: bytes merged, no begin-of-sequence, one special token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    return write_config(directory, tokenizer_class="PreTrainedTokenizerFast", eos_token="<|endoftext|>")


SPECIAL = ("<s>", "</s>", "[TOOL_CALLS]")
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))


NUM_CHARACTERS = len(SPECIAL) + len(CHARACTERS) + 2
"""V of `write_characters`."""


def write_characters(folder: Path) -> None:
    """Write a byte-level tokenizer: a token for each ASCII character, and for each of the two bytes of é."""
    import tokenizers
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

    letters = ["\N{LATIN CAPITAL LETTER C WITH DOT ABOVE}", "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"]
    pieces = [letters["\n ".index(each)] if each in "\n " else each for each in CHARACTERS]
    pieces += ["\N{LATIN CAPITAL LETTER A WITH TILDE}", "\N{COPYRIGHT SIGN}"]
    vocab = {piece: number for number, piece in enumerate([*SPECIAL, *pieces])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["<s>", "$A"], special_tokens=[("<s>", 0)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"eos_token_id": 1}')
