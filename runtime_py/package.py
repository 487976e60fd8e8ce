"""A package: the folder that holds a model and everything needed to run it."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from o2o.errors import ModelError, UsageError
from runtime_py import forks
from runtime_py.engines.engine import Engine
from runtime_py.engines.loading import LoadedEngine, load_engine
from runtime_py.engines.model_file import ModelFile, model_size
from runtime_py.engines.options import EngineOptions
from runtime_py.generation.generate import GenerationOptions, Token, generate
from runtime_py.generation.generation_config import (
    GenerationConfig,
    UnsupportedSettingWarning,
    read_generation_config,
)
from runtime_py.generation.session import Session
from runtime_py.generation.session_pool import MAX_SESSIONS, SessionPool, check_max_sessions
from runtime_py.model.find_model import MODELS, files_folder, find_model
from runtime_py.text.detokenizer import Detokenizer
from runtime_py.text.files import MemoryPath, Place
from runtime_py.text.tokenizer import Tokenizer, has_tokenizer, load_tokenizer, token_ids
from runtime_py.text.tokenizer.token_ids import TokenIds

if TYPE_CHECKING:
    from runtime_py.conversation import Conversation
    from runtime_py.generation.grammar import Grammar
    from runtime_py.generation.logits_processors import LogitsProcessor
    from runtime_py.generation.logits_processors.grammar import GrammarCompiler
    from runtime_py.generation.prompt_cache import PromptCache
    from runtime_py.generation.stored_rows import StoredRows
    from runtime_py.self_test import Passed

SUFFIXES = (".circle", ".tflite", ".onnx", ".litertlm")
_EXPECTED = (
    "a package is a folder with a tokenizer and model.circle, model.tflite or an ONNX decoder, or with "
    "model.litertlm"
)


class Package:
    """A folder with a model, its tokenizer and its configuration.

    The model is `model.circle`, `model.tflite`, `model.onnx` or `model.litertlm`, in the folder or its parent
    folder. It may also be a decoder in ONNX that another tool exported (`runtime_py.model.find_model`), or a
    given file. The vocabulary is `tokenizer.json`, `tokenizer.model`, or `vocab.json` with `merges.txt`. The
    checkpoint's other files of `export.package_files` count if they are there. Files are read when they are
    first needed. `model.litertlm` has all of these in itself.

    Several texts may be generated at once, in turns or in different threads: each has its own `session`. All
    use one engine, which is loaded at the first use. In a forked child process the package loads its own.

    Raises:
        ModelError: A file is missing or damaged.
        OSError: The system cannot read a file.
    """

    def __init__(
        self,
        directory: Place,
        model: Path,
        options: EngineOptions | None = None,
        max_sessions: int = MAX_SESSIONS,
        self_test: bool = False,
    ) -> None:
        """Describe a package; `load` finds its files.

        Args:
            directory: The place of the tokenizer and the configuration: a folder, or a file that holds them.
            model: The model's file.
            options: How to load the model; None for the defaults.
            max_sessions: The largest number of texts that are generated at the same time. Each needs memory
                for its KV caches. Idle sessions beyond it read their texts again.
            self_test: Check each engine that is loaded with the known answers of the package.
        """
        check_max_sessions(max_sessions)
        self.directory = directory
        self.model = model
        self.options = options
        self.loaded: LoadedEngine | None = None
        """The engine that was loaded last."""
        self.max_sessions = max_sessions
        self.tested: Passed | None = None
        """The result of the last self-test."""
        self._self_test = self_test
        self._pool: SessionPool | None = None
        self._scorer: Engine | None = None
        self._opening = threading.Lock()
        self._scoring = threading.Semaphore(max_sessions)  # each text that is scored has KV caches
        forks.watch(self)
        self._warned = False

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        tokenizer: str | os.PathLike[str] | None = None,
        options: EngineOptions | None = None,
        max_sessions: int = MAX_SESSIONS,
        self_test: bool = False,
    ) -> Package:
        """Find the files of a package.

        Args:
            path: The folder, or the model's file.
            tokenizer: The folder of the tokenizer and the configuration, if they are not with the model; or
                `ids` for a model without a tokenizer: texts are numbers (`TokenIds`).
            options: How to load the model; see `EngineOptions`.
            max_sessions: See `Package.__init__`.
            self_test: See `Package.__init__`.

        Returns:
            The package.

        Raises:
            ModelError: There is no model or no such folder.
        """
        place = Path(path)
        if not place.exists():
            kind = "file" if place.suffix in SUFFIXES else "folder"
            raise ModelError(f"{place}: no such {kind}; {_EXPECTED}")
        if tokenizer is not None and not Path(tokenizer).is_dir():
            if str(tokenizer) != token_ids.NAME:
                raise ModelError(f"--tokenizer {tokenizer}: no such folder")
            package = cls.load(path, None, options, max_sessions, self_test)
            package.tokenizer = TokenIds()
            return package
        if place.is_file():
            if place.suffix not in SUFFIXES:
                raise ModelError(f"{place} is not a {' or '.join(SUFFIXES)} file; {_EXPECTED}")
            folder = files_folder(place)
            return cls(_files_of(place, tokenizer, folder), place, options, max_sessions, self_test)
        # The README's pipeline writes the model next to the folder, not into it.
        beside = (place.resolve().parent / name for name in MODELS)
        model = find_model(place) or next((file for file in beside if file.is_file()), None)
        if model is None:
            raise ModelError(
                f"{place} has no {' and no '.join(MODELS)}: build the package, or copy the model there"
            )
        return cls(_files_of(model, tokenizer, place), model, options, max_sessions, self_test)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.directory)

    @cached_property
    def generation_config(self) -> GenerationConfig:
        """The checkpoint's settings for generation, of `generation_config.json` or `config.json`."""
        return read_generation_config(self.directory)

    @property
    def eos(self) -> frozenset[int]:
        """The ids that end a text. Often one, sometimes several; empty when no file has one."""
        return frozenset(self.generation_config.eos_token_id)

    def engine(self, options: EngineOptions | None = None, **changes: Any) -> Engine:
        """Load the model. A Circle file is lowered for the engine first.

            engine = package.engine(engine="litert", threads=2)

        Args:
            options: How; None for the package's own options.
            changes: Fields of `EngineOptions` that differ from `options`.

        Returns:
            A new engine, which the caller closes. `loaded` describes it. Its sessions may be used in
            different threads.

        Raises:
            ModelError: No engine can run the model, the tokenizer belongs to another one, or the self-test
                fails.
            UsageError: The requested engine does not run such files, or lacks a requested option.
        """
        loaded = load_engine(self.model, replace(options or self.options or EngineOptions(), **changes))
        self._check_tokenizer(loaded.engine)
        if self._self_test:
            self.tested = self._check_answers(loaded)
        self.loaded = loaded
        return loaded.engine

    def self_test(self, options: EngineOptions | None = None, **changes: Any) -> Passed:
        """Load the model, and compare its engine with the known answers of the package.

            print(package.self_test(engine="onnx"))

        Args:
            options: As for `engine`.
            changes: As for `engine`.

        Returns:
            The engine, the number of steps and the largest error.

        Raises:
            ModelError: See `engine`; or the engine computes other logits, or the package has no answers.
            UsageError: See `engine`.
        """
        loaded = load_engine(self.model, replace(options or self.options or EngineOptions(), **changes))
        with closing(loaded.engine):
            return self._check_answers(loaded)

    def _check_answers(self, loaded: LoadedEngine) -> Passed:
        from runtime_py.self_test import check, read  # late, as few loads are tested

        try:
            return check(loaded.engine, loaded.name, read(self.model))
        except BaseException:
            loaded.engine.close()
            raise

    @property
    def size(self) -> int:
        """Bytes of the model, including the external data of an ONNX file."""
        return model_size(self.model)

    def session(self, slot: int | None = None) -> Session:
        """Open a session: one text of the model. Loads the model at the first use.

            with package.session() as session:
                package.generate("Once upon a time", session=session)

        Args:
            slot: The number of the KV caches to use if they are free; None for those that fit best.

        Returns:
            A session without a text. It takes no memory until it reads one.

        Raises:
            ModelError: See `engine`.
            UsageError: See `engine`.
        """
        return Session(self._open_pool(), slot)

    def stream(
        self,
        prompt: str | Sequence[int],
        session: Session | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Generator[Token]:
        """Generate a continuation, token by token.

        `generation_config.json` says how, as for `generate` of transformers; `options` go before it.

            for token in Package.load("tinyllama").stream("Once upon a time", max_new_tokens=20):
                print(token.text, end="", flush=True)

        A prefix that `prompt` shares with an earlier text is not computed again while its KV caches exist.

        Args:
            prompt: A text, or its token ids [P].
            session: The session to generate in; None for a new one, which is opened at the first token and
                closed with the generator.
            options: See `runtime_py.generation.generate.GenerationOptions`.

        Returns:
            The tokens, up to the end of sequence, a limit of `options` or the end of the context. `finish`
            of the last token says which.

        Raises:
            ModelError: See the class. May be raised at the first token.
            UsageError: The prompt is empty or does not fit; `max_sessions` texts are being generated; the
                session generates another text, or was closed. May be raised at the first token.
        """
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        config = self.generation_config
        if getattr(options.get("sampling"), "greedy", False) is False:
            self._warn_unsupported()
        return self._generate(ids, session, config, options)

    def _generate(
        self,
        ids: Sequence[int],
        session: Session | None,
        config: GenerationConfig,
        options: GenerationOptions,
    ) -> Generator[Token, None, None]:
        plain: dict[str, Any] = {**options}
        grammar: Grammar | None = plain.pop("grammar", None)
        if grammar is not None:
            processors = plain.get("logits_processors", ())
            plain["logits_processors"] = [*processors, self.grammar_processor(grammar)]
        detokenizer = Detokenizer(self.tokenizer, continues=grammar is not None)
        with self.session() if session is None else nullcontext(self._checked(session)) as session:
            yield from generate(session, ids, detokenizer, config=config, **plain)

    def grammar_processor(self, grammar: Grammar) -> LogitsProcessor:
        """Compile a grammar for the tokenizer of this package.

        The first grammar takes a second for a large vocabulary; others take milliseconds.

        Args:
            grammar: The form of a text.

        Returns:
            The logits processor that `grammar` of `GenerationOptions` adds. It may be used for several texts,
            one after the other.

        Raises:
            UsageError: The grammar is malformed or not supported, or the package has no end of sequence.
        """
        return self._grammar_compiler.processor(grammar)

    def generate(
        self,
        prompt: str | Sequence[int],
        session: Session | None = None,
        **options: Unpack[GenerationOptions],
    ) -> str:
        """Generate a continuation.

        Args:
            prompt: As for `stream`.
            session: As for `stream`.
            options: As for `stream`.

        Returns:
            The text that follows the prompt.
        """
        return "".join(token.text for token in self.stream(prompt, session, **options))

    def remember(self, prompt: str | Sequence[int], *, in_package: bool = False, label: str = "") -> Path:
        """Store the keys and values of a prompt. Later prompts that begin with it do not compute them again.

            package.remember(system_prompt)

        They are used on the engine that computed them, and for float32 weights on all engines. In the disk
        cache, at most `runtime_py.generation.prompt_cache.MAX_BYTES` are stored.

        Args:
            prompt: A text, or its token ids [P].
            in_package: Store them beside the model, and not in the disk cache.
            label: What it is, for the list of `o2o cache`; "" for the path of the model.

        Returns:
            The file.

        Raises:
            ModelError: See `engine`; or the rows of the model's caches cannot be stored.
            UsageError: The prompt is empty or does not fit; there is no disk cache.
            OSError: The file cannot be written.
        """
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        return self.stored_rows.remember(ids, label, in_package)

    @property
    def stored_rows(self) -> StoredRows:
        """Rows of KV caches in files: stored prompts and saved slots. Loads the model at the first use."""
        from runtime_py.generation.stored_rows import StoredRows  # few texts are stored

        pool = self._open_pool()
        assert pool.prompts is not None
        return StoredRows(pool, pool.prompts)

    def score(self, text: str | Sequence[int], top: int = 0) -> list[Token]:
        """Compute the log-probabilities of the tokens of a text.

            for token in package.score("Lily picked up a flower."):
                print(token.text, token.log_probability)

        The model is loaded once more, in a form whose prefills give the logits of each token. It stays loaded
        until `close`. At most `max_sessions` texts are scored at the same time; other threads wait.

        Args:
            text: A text, or its token ids [P], P <= S + 1.
            top: How many of the most likely tokens to return for each place.

        Returns:
            The tokens of the text with `log_probability` and `top`. The first has no log-probability: nothing
            predicts it.

        Raises:
            ModelError: See `engine`.
            UsageError: The text is empty or does not fit.
        """
        from runtime_py.generation.scoring import score_tokens

        ids = self.tokenizer.encode(text) if isinstance(text, str) else text
        with self._scoring, closing(self._open_scorer().open_session()) as session:
            return list(score_tokens(session, ids, Detokenizer(self.tokenizer), top))

    def chat(
        self,
        system: str | None = None,
        session: Session | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        template_args: Mapping[str, Any] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Conversation:
        """Start a conversation in the checkpoint's chat template.

            chat = package.chat(tools=[schema], template_args={"enable_thinking": False})

        Args:
            system: The system message.
            session: The session of the conversation, which closes it; None for a new one.
            tools: JSON schemas of the tools that the model may call.
            documents: Documents with a `title` and a `text`.
            template: The name of the chat template, if the checkpoint has several.
            template_args: Other variables of the template.
            options: As for `stream`, for every answer.

        Returns:
            A conversation.

        Raises:
            ModelError: The checkpoint has no chat template.
            UsageError: It has none with the name `template`, or a variable is not JSON.
        """
        from runtime_py.conversation import Conversation  # with Jinja, which only this needs
        from runtime_py.text.chat_template import ChatTemplate

        chat_template = ChatTemplate(
            self.directory,
            self.tokenizer.special_tokens,
            tools=tools,
            documents=documents,
            template=template,
            template_args=template_args,
        )
        session = session or self.session()
        return Conversation(session, self.tokenizer, chat_template, self.stream, system, **options)

    def close(self) -> None:
        """Free the engine and the KV caches of all sessions. Waits for the current run.

        Sessions that are open, and streams that are not finished, raise UsageError at their next use. The
        next `session`, `stream`, `generate` or `chat` loads the model again. Closing twice does nothing.
        """
        with self._opening:
            pool, self._pool = self._pool, None
            scorer, self._scorer = self._scorer, None
        if pool is not None:
            pool.close()
        if scorer is not None:
            scorer.close()

    def __enter__(self) -> Package:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _checked(self, session: Any) -> Session:
        """Raise UsageError for a session of another model: its KV caches would give wrong tokens."""
        if not isinstance(session, Session):
            raise UsageError(f"session is of type {type(session).__name__}: open one with Package.session")
        if session.pool is not self._pool and session.pool.refusal is None:
            raise UsageError(
                f"the session belongs to another package than {self.directory}: open one with "
                f"Package.session of this package"
            )
        return session

    def _warn_unsupported(self) -> None:
        """Warn once of settings of `generation_config.json` that are not supported."""
        config = self.generation_config
        if config.unsupported and not self._warned:
            self._warned = True
            keys = ", ".join(config.unsupported)
            message = f"{config.path}: not supported, and ignored: {keys}"
            warnings.warn(message, UnsupportedSettingWarning, stacklevel=3)

    def after_fork_in_child(self) -> None:
        """Let the next use load an engine for this process. The parent's cannot be used or freed here."""
        self._pool = self._scorer = None
        self._opening = threading.Lock()  # another thread of the parent may hold it
        self._scoring = threading.Semaphore(self.max_sessions)

    @cached_property
    def _grammar_compiler(self) -> GrammarCompiler:
        from runtime_py.generation.logits_processors.grammar import GrammarCompiler  # needs an extra

        return GrammarCompiler(self.tokenizer, self.generation_config.eos_token_id)

    def _open_pool(self) -> SessionPool:
        with self._opening:
            if self._pool is None:
                rounded = self.options is not None and self.options.rounded_drafts
                engine = self.engine()
                prompts = self._prompt_cache(engine)
                self._pool = SessionPool(engine, self.max_sessions, rounded, prompts)
            return self._pool

    def _prompt_cache(self, engine: Engine) -> PromptCache:
        from runtime_py.generation.prompt_cache import PromptCache

        assert self.loaded is not None
        options = self.options or EngineOptions()
        name = self.loaded.name
        model = ModelFile(self.model)
        return PromptCache(model, name, lambda: engine.weight_dtype, options.disk_cache, options.log)

    def _open_scorer(self) -> Engine:
        with self._opening:
            if self._scorer is None:
                loaded = self.loaded
                self._scorer = self.engine(all_logits=True)
                self.loaded = loaded or self.loaded
            return self._scorer

    def _check_tokenizer(self, engine: Engine) -> None:
        """Close the engine and raise ModelError if the tokenizer has more ids than the model."""
        vocab_size = engine.vocab_size
        if has_tokenizer(self.directory) and (ids := self.tokenizer.vocab_size) > vocab_size:
            engine.close()
            raise ModelError(
                f"{self.directory}: the tokenizer has {ids} ids, the model {vocab_size}: use the "
                f"tokenizer of the model's checkpoint"
            )


def _files_of(model: Path, tokenizer: str | os.PathLike[str] | None, folder: Path) -> Place:
    """The place of the tokenizer and the configuration: a folder, or the `.litertlm` file itself."""
    if tokenizer is not None:
        return Path(tokenizer)
    if model.suffix != ".litertlm":
        return folder
    from o2o.litertlm import read_bundle
    from o2o.litertlm.package_files import files_of
    from o2o.streams import open_file

    return MemoryPath(str(model), files_of(read_bundle(open_file(model))))
