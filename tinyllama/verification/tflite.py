"""A TFLite file on LiteRT, driven as the user will drive it: by runtime_py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from export.model import LanguageModel
from o2o import formats
from o2o.errors import ModelError, UsageError
from o2o.model import Model, shape_of
from runtime_py.chunks import Chunk
from runtime_py.package import Package
from tinyllama.verification.ends import Ends, ends_of
from tinyllama.verification.interpreted import Interpreted
from tinyllama.verification.trace import Trace


class TfliteFile:
    """A `Predictor`: what is in `file`, made of the checkpoint in `directory`."""

    label = "TFLite"

    def __init__(self, file: Path, directory: Path) -> None:
        """Raises ModelError for a file that is no such model, or is of another checkpoint, UsageError where
        there is none."""
        if not file.is_file():
            raise UsageError(f"no such file: {file}")
        self.file = file
        self.model = _read(file)
        language_model = LanguageModel.read(directory)
        self._parameters = list(language_model.parameters)
        self.ends = [ends_of(signature) for signature in self.model.signatures]
        _check(file, self.ends, language_model, directory)
        self.package = Package(directory, file)
        self._engine = self.package.engine()
        self.capacity = self._engine.capacity
        self.vocab_size = self._engine.vocab_size

    def check(self, prompts: Mapping[str, Sequence[int]], max_new_tokens: int) -> None:
        """Raises UsageError when a prompt and what is to be generated after it do not fit into the caches."""
        for text, prompt in prompts.items():
            if len(prompt) + max_new_tokens - 1 > self.capacity:
                raise UsageError(
                    f"--prompts {text[:40]!r} has {len(prompt)} tokens, and --max_new_tokens is "
                    f"{max_new_tokens}: {self.file.name} has KV caches of {self.capacity}, so shorten one of "
                    "them, or convert with a larger --kv_cache_max_len"
                )

    def plan(self, prompt: int) -> Sequence[Chunk]:
        """See `Engine`."""
        return self._engine.plan(prompt)

    def prefill(self, tokens: Sequence[int]) -> np.ndarray:
        """See `Engine`."""
        return self._engine.prefill(tokens)

    def decode(self, token: int, position: int) -> np.ndarray:
        """See `Engine`."""
        return self._engine.decode(token, position)

    def close(self) -> None:
        """See `Engine`."""
        self._engine.close()

    @cached_property
    def _interpreted(self) -> Interpreted:
        return Interpreted(self.file, self.model, self.ends, self._parameters)

    def trace(self, prompt: Sequence[int], generated: Sequence[int] = ()) -> Trace:
        """See `Predictor`. Computed by LiteRT's own kernels, which leave all tensors to be seen, and not by
        XNNPACK's: numbers may differ from those of `prefill` and `decode` by rounding."""
        interpreted = self._interpreted
        interpreted.start()
        trace: Trace = {}
        *before, last = self.plan(len(prompt))
        for chunk in before:
            interpreted.run(chunk.length, prompt[chunk.start : chunk.stop], chunk.start)
        watch = not generated
        trace = interpreted.run(last.length, prompt[last.start : last.stop], last.start, watch)
        if watch and "logits" not in trace:  # of a prefill without: decode reads the last token once more
            trace = trace | interpreted.run(1, prompt[-1:], len(prompt) - 1, watch=True)
        for position, token in enumerate(generated, len(prompt)):
            watch = position == len(prompt) + len(generated) - 1
            trace = interpreted.run(1, [token], position, watch)
        return trace


def _read(file: Path) -> Model:
    """The graphs of `file`. Raises ModelError."""
    model = formats.load(file)
    if model.format != "tflite":
        raise ModelError(f"{file} is Circle, not TFLite: lower.litert.py makes it so")
    names = [signature.name for signature in model.signatures]
    if "decode" not in names or not any(name.startswith("prefill") for name in names):
        told = ", ".join(names) or "none"
        raise ModelError(
            f"{file} has the signatures {told}, not prefill and decode: convert_to_tflite.py makes them"
        )
    return model


def _check(file: Path, ends: Sequence[Ends], model: LanguageModel, directory: Path) -> None:
    """Raises ModelError for a file whose sizes are not those of the checkpoint."""
    decode = next(one for one in ends if one.name == "decode")
    if decode.logits is None:
        raise ModelError(f"{file}: decode gives no logits")
    found = shape_of(decode.logits[1])[-1]
    wanted: int = model.config.get_text_config(decoder=True).vocab_size
    if found != wanted:
        raise ModelError(
            f"{file} has a vocabulary of {found} tokens, {directory} one of {wanted}: they are not of "
            "the same checkpoint"
        )
    for one in ends:
        if len(one.rows) != 2 * model.layers:
            raise ModelError(
                f"{one.name} of {file} has KV caches of {len(one.rows) / 2:g} layers, {directory} has "
                f"{model.layers} layers: they are not of the same checkpoint"
            )
        for cache in one.rows.values():
            axes = dict(zip(cache.layout, shape_of(cache.value), strict=True))
            if (axes["N"], axes["H"]) != (model.key_value_heads, model.head_dim):
                raise ModelError(
                    f"{cache.name} of {file} has {axes['N']} heads of {axes['H']}, {directory} "
                    f"{model.key_value_heads} of {model.head_dim}: they are not of the same checkpoint"
                )
