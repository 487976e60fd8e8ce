"""The model run by transformers, in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils import logging

from export.loading_flags import defining_file, is_trusted
from export.model import LanguageModel, read_config, summarize_error
from export.parameter_matching import match_parameters
from export.rotary import fix_frequencies
from o2o.cli.silence_stderr import suppressed_warnings
from o2o.errors import ModelError, O2oError
from o2o.weights.checkpoint import Checkpoint, adapter_file, open_checkpoint
from runtime_py.engines.prefill_plan import Chunk
from tinyllama.verification.trace import Trace, heads_as_rows, rows


class HuggingFace:
    """A `PromptPredictor`: the checkpoint in `directory`, computed as transformers does by default, or with
    the attention implementation of that name."""

    def __init__(
        self, directory: Path, attn_implementation: str | None = None, context: int | None = None
    ) -> None:
        """Load the model. Rotary embeddings that depend on the length of a text have those of `context`.

        Raises ModelError for a checkpoint that is damaged, incomplete or in another format.
        """
        self.label = f"Hugging Face, {attn_implementation}" if attn_implementation else "Hugging Face"
        self.model = load(directory, attn_implementation)
        file = defining_file(self.model.config.model_type)
        self.source = "Hugging Face transformers" if file is None else f"{file.name}, run by PyTorch"
        if context is not None:
            fix_frequencies(self.model, context)
        text = self.model.config.get_text_config(decoder=True)
        self.vocab_size: int = text.vocab_size
        self.capacity: int = getattr(text, "max_position_embeddings", None) or 1 << 30
        self._cache: Any = None

    def plan(self, length: int, num_cached: int = 0) -> list[Chunk]:
        """See `EngineSession`: all at a time."""
        return [Chunk(length, 0, length)]

    def scores(self, tokens: Sequence[int]) -> np.ndarray:
        """See `PromptPredictor`."""
        self._cache = DynamicCache(config=self.model.config)
        return self._feed(tokens)

    def prefill(self, tokens: Sequence[int], num_cached: int = 0) -> np.ndarray:
        """See `EngineSession`. All are read."""
        return self.scores(tokens)[-1]

    def decode(self, token: int, position: int) -> np.ndarray:
        """See `EngineSession`."""
        assert self._cache.get_seq_length() == position
        return self._feed([token])[-1]

    def trace(self, prompt: Sequence[int], generated: Sequence[int] = ()) -> Trace:
        """See `Predictor`."""
        self._cache = cache = Watched(config=self.model.config)
        fed, last = ([*prompt, *generated[:-1]], [generated[-1]]) if generated else ([], prompt)
        if fed:
            self._feed(fed)
        cache.trace = {}
        with _watched(self.model, cache.trace):
            cache.trace["logits"] = self._feed(last)
        return cache.trace

    def rounding(self, tokens: Sequence[int]) -> np.ndarray:
        """Measure the rounding error of float32.

        Another order of additions may differ by twice this error.

        Args:
            tokens: P ids.

        Returns:
            [P]: the largest difference of each token's logits from float64.
        """
        single = self.scores(tokens)
        self.model.double()
        try:
            return np.abs(self.scores(tokens) - single).max(axis=1)
        finally:
            self.model.float()  # back to what it was, exactly

    def close(self) -> None:
        """See `EngineSession`."""

    @torch.no_grad()
    def _feed(self, tokens: Sequence[int]) -> np.ndarray:
        result = self.model(torch.tensor([list(tokens)]), past_key_values=self._cache, use_cache=True)
        return result.logits[0].numpy()


class Watched(DynamicCache):
    """A cache that records its new rows in a trace, if it has one."""

    trace: Trace | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.trace is not None:
            for what, tensor in (("keys", key_states), ("values", value_states)):
                self.trace[f"model.layers.{layer_idx}.{what}"] = heads_as_rows(tensor.numpy())
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


@contextlib.contextmanager
def _watched(model: torch.nn.Module, trace: Trace) -> Iterator[None]:
    """Record the inputs and outputs of modules with weights in `trace`."""

    def before(name: str) -> Any:
        return lambda module, args: trace.update({f"{name}.input": rows(args[0].numpy())})

    def after(name: str) -> Any:
        return lambda module, args, output: trace.update({name: rows(output.numpy())})

    def looked_up(name: str) -> Any:
        """Record the rows of the table, before a module such as Gemma's scales them."""
        return lambda module, args, output: trace.update({name: rows(module.weight[args[0]].numpy())})

    handles = []
    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            hook = looked_up if isinstance(module, torch.nn.Embedding) else after
            handles.append(module.register_forward_hook(hook(name)))
            if isinstance(module, torch.nn.Linear):
                handles.append(module.register_forward_pre_hook(before(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def load(directory: Path, attn_implementation: str | None = None) -> Any:
    """Load a checkpoint with transformers, in float32.

    Args:
        directory: The checkpoint's folder.
        attn_implementation: transformers' name of it; None for the default.

    Returns:
        The model.

    Raises:
        ModelError: The checkpoint is damaged, or transformers cannot load it.
    """
    checkpoint = open_checkpoint(directory)  # reports defects in one line
    logging.disable_progress_bar()
    how: dict[str, Any] = {"dtype": torch.float32}
    if attn_implementation:
        how["attn_implementation"] = attn_implementation
    how["trust_remote_code"] = is_trusted()
    files = {tensor.path for tensor in checkpoint.tensors.values()}
    try:
        with suppressed_warnings():
            readable = all(file.suffix in (".safetensors", ".bin") for file in files)
            if readable and not adapter_file(directory):  # with PEFT, transformers would load the adapter
                model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True, **how)
            else:  # transformers does not search for these
                model = _filled(directory, checkpoint, how)
    except O2oError:
        raise
    except Exception as error:
        raise ModelError(f"transformers cannot load {directory}{summarize_error(error)}") from error
    return model.eval()


@torch.no_grad()
def _filled(directory: Path, checkpoint: Checkpoint, how: dict[str, Any]) -> Any:
    """transformers' model with the tensors that export reads, one at a time."""
    structure = LanguageModel.read(directory)
    config = read_config(directory)  # not the one of `structure`, which has another attention
    config.tie_word_embeddings = bool(structure.aliases)
    model = AutoModelForCausalLM.from_config(config, **how)
    parameters = model.state_dict(keep_vars=True)
    for name, source in match_parameters(structure, checkpoint).items():
        parameters[name].copy_(torch.from_numpy(source.read_float32()))
    return model
