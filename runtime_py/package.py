"""A package: the folder that holds a model and everything needed to run it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from o2o.errors import ModelError
from runtime_py.engines import Engine
from runtime_py.engines.disk_cache import user_cache
from runtime_py.engines.factory import Start, start
from runtime_py.engines.litert.lowered_file import lower_file
from runtime_py.engines.selection import AUTO, READ, Running, choices, threads_for
from runtime_py.generation.generate import Options, Token, generate
from runtime_py.generation.session import Session
from runtime_py.model.contract import Contract, contract_of_onnx
from runtime_py.model.weight_dtype import precision
from runtime_py.text.detokenizer import Detokenizer
from runtime_py.text.tokenizer import Tokenizer, has_tokenizer, load_tokenizer, read_json

if TYPE_CHECKING:
    from runtime_py.conversation import Conversation

MODELS = ("model.circle", "model.tflite", "model.onnx")
SUFFIXES = (".circle", ".tflite", ".onnx")
_WANTED = "a package is a folder with model.circle or model.tflite and a tokenizer"


class Package:
    """A folder with `model.circle` (or `model.tflite`, or `model.onnx`), `tokenizer.json` or
    `tokenizer.model`, and, where the checkpoint has them, `tokenizer_config.json`, `config.json` and
    `generation_config.json`. The model may lie beside the folder too, or have another name and be told by it.

    Files are read when they are first asked for. Whatever is wrong with one raises ModelError, whatever
    the system refuses raises OSError.
    """

    def __init__(self, directory: Path, model: Path) -> None:
        self.directory = directory
        self.model = model
        self.running: Running | None = None
        """What `engine` started last."""

    @classmethod
    def load(cls, path: str | os.PathLike[str], tokenizer: str | os.PathLike[str] | None = None) -> Package:
        """The package in the folder `path`, or that of the model's file `path`. Raises ModelError.

        tokenizer: the folder of the tokenizer and the configuration, where these are not with the model.
        """
        place = Path(path)
        if not place.exists():
            raise ModelError(
                f"{place}: no such {'file' if place.suffix in SUFFIXES else 'folder'}; {_WANTED}"
            )
        if tokenizer is not None and not Path(tokenizer).is_dir():
            raise ModelError(f"{tokenizer}: no such folder, for the tokenizer")
        if place.is_file():
            if place.suffix not in SUFFIXES:
                raise ModelError(f"{place} is a file, and no {' or '.join(SUFFIXES)}; {_WANTED}")
            return cls(Path(tokenizer or place.parent), place)
        # The guide leaves its model beside the package's folder, where the last filter wrote it.
        for folder in (place, place.resolve().parent):
            for name in MODELS:
                if (model := folder / name).is_file():
                    return cls(Path(tokenizer or place), model)
        raise ModelError(
            f"{place} has no {' and no '.join(MODELS)}: build the package, or copy the model there"
        )

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
        capacities: Sequence[int] | None = None,
        engine: str = AUTO,
    ) -> Engine:
        """The model, ready to run; a Circle file is lowered on the way to what the engine takes.

        threads: None for as many as pay. debug: let the runtime write its log to stderr. cache: whether what
        a big model takes long for at its first load may be kept for the next, in the user's cache folder.
        say: is told, in a line, when that is done or fails. capacities: of the caches in which decode runs on
        LiteRT besides the model's own, None for 256, 512, ...: see `o2o.lower.litert.tuning`. engine:
        `litert`,
        `onnx` or `onert`; `auto` for the one that measured fastest, see `runtime_py.engines.selection`,
        which is
        LiteRT where there are capacities; `running` and `told` say which one it is.
        """
        if engine == AUTO and capacities is not None and "litert" in READ[self.model.suffix]:
            engine = "litert"
        refused: ModelError | None = None
        for choice in choices(self.model, engine):
            wanted = threads or threads_for(choice.engine, self.size)
            start_ = Start(wanted, debug, user_cache() if cache else None, say, capacities)
            try:
                started = start(choice.engine, self.model, start_)
            except ModelError as error:
                refused = refused or error
                continue
            self._check_tokenizer(started)
            self.running = Running(choice, wanted)
            return started
        assert refused
        raise refused

    @property
    def size(self) -> int:
        """The bytes of the model, with what ONNX keeps of it in a file beside it."""
        files = [self.model, self.model.with_name(f"{self.model.name}.data")]
        return sum(file.stat().st_size for file in files if file == self.model or file.is_file())

    @property
    def told(self) -> str:
        """What `engine` started last, in a line; empty before. Raises ModelError."""
        return self.running.told(precision(self.model)) if self.running else ""

    @cached_property
    def session(self) -> Session:
        """The model's one text, on an `engine` with the defaults, unless another was put here before."""
        return Session(self.engine())

    def stream(self, prompt: str | Sequence[int], **options: Unpack[Options]) -> Iterator[Token]:
        """What follows `prompt`, a text or its ids [P], as it comes.

            for token in Package.load("tinyllama").stream("Once upon a time", max_new_tokens=20):
                print(token.text, end="", flush=True)

        It ends at the checkpoint's end of sequence, as `options` say, or at the end of the context: the last
        token's `finish` tells. What `prompt` has in common with the text before it is not computed again.

        Raises ModelError and OSError (see the class), and UsageError for a prompt that is empty or does not
        fit, some of them at the first step.
        """
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        return generate(self.session, ids, Detokenizer(self.tokenizer), eos=self.eos, **options)

    def generate(self, prompt: str | Sequence[int], **options: Unpack[Options]) -> str:
        """The text that follows `prompt`: that of `stream`, which see, when it is complete."""
        return "".join(token.text for token in self.stream(prompt, **options))

    def chat(self, system: str | None = None, **options: Unpack[Options]) -> Conversation:
        """A conversation by the checkpoint's chat template; system: what the model is told before all.
        Raises ModelError where there is no template."""
        from runtime_py.conversation import Conversation  # and Jinja, which only this needs

        return Conversation(self, system, **options)

    def close(self) -> None:
        """Give back what `session` holds, if it is there. It is made anew when it is needed."""
        if (session := self.__dict__.pop("session", None)) is not None:
            session.engine.close()

    def __enter__(self) -> Package:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def contract(self) -> Contract:
        """What the model takes and gives, on LiteRT unless it is ONNX. Raises ModelError."""
        try:
            if self.model.suffix == ".onnx":
                return contract_of_onnx(self.model)
            return Contract.parse(lower_file(self.model).contract)
        except ModelError as error:
            raise ModelError(f"{self.model}: {error}") from error

    def _check_tokenizer(self, engine: Engine) -> None:
        """Where there is one: ids can be fed without."""
        vocab_size = engine.vocab_size
        if has_tokenizer(self.directory) and (ids := self.tokenizer.vocab_size) > vocab_size:
            engine.close()
            raise ModelError(
                f"{self.directory}: the tokenizer has {ids} ids, the model {vocab_size}: "
                "they are not from the same checkpoint"
            )
