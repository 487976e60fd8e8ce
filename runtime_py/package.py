"""A package: the folder that holds a model and everything needed to run it."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from o2o.errors import ModelError
from runtime_py.cache import user_cache
from runtime_py.contract import Contract
from runtime_py.engines import Engine
from runtime_py.preparing import prepare
from runtime_py.tokenizer import Tokenizer, load_tokenizer, read_json

MODELS = ("model.circle", "model.tflite")
WORTH_SHARING = 16_000_000
"""Bytes of a model from which threads pay: a step of less is over before they have met. `bench/threads.py`
compares, package by package."""
_WANTED = "a package is a folder with model.circle and a tokenizer"


class Package:
    """A folder with `model.circle` (or `model.tflite`), `tokenizer.json` or `tokenizer.model`, and, where
    the checkpoint has them, `tokenizer_config.json`, `config.json` and `generation_config.json`. The model
    may lie beside the folder too.

    Files are read when they are first asked for. Whatever is wrong with one raises ModelError, whatever
    the system refuses raises OSError.
    """

    def __init__(self, directory: Path, model: Path) -> None:
        self.directory = directory
        self.model = model

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Package:
        """The package in `directory`. Raises ModelError when there is none."""
        folder = Path(directory)
        if not folder.exists():
            raise ModelError(f"{folder}: no such folder; {_WANTED}")
        if not folder.is_dir():
            raise ModelError(f"{folder} is a file; {_WANTED}")
        # The guide leaves its model beside the package's folder, where the last filter wrote it.
        for place in (folder, folder.resolve().parent):
            for name in MODELS:
                if (model := place / name).is_file():
                    return cls(folder, model)
        raise ModelError(f"{folder} has no {MODELS[0]}: build the package, or copy the model there")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.directory)

    @cached_property
    def eos(self) -> frozenset[int]:
        """The ids that end a text: `eos_token_id` of generation_config.json, else of config.json; often
        one, sometimes several, empty when neither file tells."""
        for name in ("generation_config.json", "config.json"):
            told = read_json(self.directory / name).get("eos_token_id")
            if told is not None:
                ids = told if isinstance(told, list) else [told]
                if not all(isinstance(token, int) for token in ids):
                    raise ModelError(f"{self.directory / name}: eos_token_id {told!r} is no id, nor a list")
                return frozenset(ids)
        return frozenset()

    def engine(
        self,
        threads: int | None = None,
        debug: bool = False,
        cache: bool = True,
        say: Callable[[str], None] = lambda line: None,
    ) -> Engine:
        """The model on LiteRT, ready to run; a Circle file is lowered to TFLite on the way.

        threads: None for one each core, or for one alone where a step is too short to share. debug: let the
        runtime write its log to stderr. cache: whether what a big model takes long for at its first load may
        be kept for the next, in the user's cache folder. say: is told, in a line, when that is done or fails.
        """
        from runtime_py.engines.litert import LiteRtEngine

        prepared = prepare(self.model, user_cache() if cache else None, say)
        try:
            contract = Contract.parse(prepared.lowered.contract)
        except ModelError as error:
            raise ModelError(f"{self.model}: {error}") from error
        if (ids := self.tokenizer.vocab_size) > contract.vocab_size:
            raise ModelError(
                f"{self.directory}: the tokenizer has {ids} ids, the model {contract.vocab_size}: "
                "they are not from the same checkpoint"
            )
        if threads is None:
            threads = cores() if self.model.stat().st_size >= WORTH_SHARING else 1
        return LiteRtEngine(prepared.open(), contract, packed=prepared.packed, threads=threads, debug=debug)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
