"""A TFLite file on LiteRT, run as a user runs it: by runtime_py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from export.model import LanguageModel
from o2o import formats
from o2o.contract import contract_of
from o2o.errors import ModelError, UsageError
from o2o.model import Model
from runtime_py.engines.prefill_plan import Chunk
from runtime_py.model.contract import Contract
from runtime_py.model.inferred_roles import infer_roles
from runtime_py.package import Package
from tinyllama.verification.litert_interpreter import TracingInterpreter
from tinyllama.verification.trace import Trace


class TfliteFile:
    """A `Predictor` of a TFLite file that was converted from the checkpoint in `directory`."""

    label = "TFLite"

    def __init__(self, file: Path, directory: Path) -> None:
        """Raises ModelError for a wrong model or checkpoint, UsageError for a missing file."""
        if not file.is_file():
            raise UsageError(f"no such file: {file}")
        self.file = file
        self.directory = directory
        self.language_model = LanguageModel.read(directory)
        self.parameters = self.language_model.parameters
        self.model, self.contract = _read(file)
        _check(file, self.contract, self.language_model, directory)
        self.package = Package(directory, file)
        self.engine = self.package.engine()
        self._session = self.engine.open_session()
        self.capacity = self.engine.capacity
        self.vocab_size = self.engine.vocab_size

    def check(self, prompts: Mapping[str, Sequence[int]], max_new_tokens: int) -> None:
        """Check that the caches hold each prompt and the tokens generated after it.

        Args:
            prompts: {text: ids}.
            max_new_tokens: Tokens to generate.

        Raises:
            UsageError: The caches are too small.
        """
        for text, prompt in prompts.items():
            if len(prompt) + max_new_tokens - 1 > self.capacity:
                raise UsageError(
                    f"--prompts {text[:40]!r} has {len(prompt)} tokens, and --max_new_tokens is "
                    f"{max_new_tokens}: {self.file.name} has KV caches of {self.capacity}, so shorten one of "
                    "them, or convert with a larger --kv_cache_max_len"
                )

    def plan(self, length: int, num_cached: int = 0) -> Sequence[Chunk]:
        """See `EngineSession`."""
        return self._session.plan(length, num_cached)

    def prefill(self, tokens: Sequence[int], num_cached: int = 0) -> np.ndarray:
        """See `EngineSession`."""
        return self._session.prefill(tokens, num_cached)

    def decode(self, token: int, position: int) -> np.ndarray:
        """See `EngineSession`."""
        return self._session.decode(token, position)

    def close(self) -> None:
        """See `EngineSession`."""
        self._session.close()
        self.engine.close()

    @cached_property
    def _interpreter(self) -> TracingInterpreter:
        return TracingInterpreter(self.file, self.model, self.contract, self.parameters)

    def trace(self, prompt: Sequence[int], generated: Sequence[int] = ()) -> Trace:
        """See `Predictor`. LiteRT's own kernels compute it: XNNPACK keeps no intermediate tensors.

        The numbers may differ by rounding from the results of `prefill` and `decode`.
        """
        interpreter = self._interpreter
        interpreter.start()
        trace: Trace = {}
        for chunk in self.plan(len(prompt)):
            tokens = prompt[chunk.start : chunk.stop]
            more = interpreter.run(chunk.length, tokens, chunk.start, watch=not generated)
            trace |= {name: _joined(trace.get(name), rows, chunk.start) for name, rows in more.items()}
        for position, token in enumerate(generated, len(prompt)):
            last = position == len(prompt) + len(generated) - 1
            trace = interpreter.run(1, [token], position, watch=last)
        return trace


def _joined(before: np.ndarray | None, rows: np.ndarray, start: int) -> np.ndarray:
    """Concatenate the rows before position `start` and the rows from there on."""
    return rows if before is None else np.concatenate([before[:start], rows])


def _read(file: Path) -> tuple[Model, Contract]:
    """The graphs of `file`, and their contract. Raises ModelError."""
    model = formats.load(file)
    if model.format != "tflite":
        raise ModelError(f"{file} is Circle, not TFLite: run lower.litert.py first")
    if not contract_of(model)["signatures"]:
        infer_roles(model)
    try:
        return model, Contract.parse(contract_of(model))
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from error


def _check(file: Path, contract: Contract, model: LanguageModel, directory: Path) -> None:
    """Check that the file's sizes are the checkpoint's. Raises ModelError."""
    vocab_size: int = model.config.get_text_config(decoder=True).vocab_size
    caches = contract.decode.caches
    facts = [
        ("a vocabulary of {} tokens", contract.vocab_size, vocab_size),
        ("KV caches of {} layers", len(caches) // 2, model.layers),
    ]
    shapes = dict(enumerate(model.cache_shapes))  # key 0, value 0, key 1, ...
    for (kind, layer), cache in caches.items():
        (K, H), expected_heads = cache.heads, shapes.get(2 * layer + (kind == "value"), cache.heads)
        facts += [
            (f"KV caches of {{}} heads in layer {layer}", K, expected_heads[0]),
            (f"KV caches with heads of size {{}} in layer {layer}", H, expected_heads[1]),
        ]
    for noun, actual, expected in facts:
        if actual != expected:
            raise ModelError(
                f"{file} has {noun.format(actual)}, {directory} has {expected}: they are not from the "
                f"same checkpoint"
            )
