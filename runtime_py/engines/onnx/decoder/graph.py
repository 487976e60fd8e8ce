"""One graph of a decoder: its session in ONNX Runtime, and a binding for each text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from o2o.cli.silence_stderr import silenced_stderr
from o2o.errors import ModelError
from runtime_py.engines.onnx.decoder.caches import TextCache, value_of
from runtime_py.engines.onnx.decoder.inputs import Run, feed
from runtime_py.engines.onnx.decoder.interface import Cache, Interface, read_interface, tensors_of
from runtime_py.engines.onnx.inference_session import model_error_from, open_inference_session

with silenced_stderr():
    import onnxruntime

EXACT, ROUNDED = 1e-3, 0.15
"""Errors of logits of float32, and of a graph that rounds activations by ranges that depend on the run."""


class DecoderGraph:
    """A graph that ONNX Runtime has loaded.

    Attributes:
        file: Its file.
        interface: Its inputs and outputs.
        mask_rows: See `runtime_py.engines.onnx.decoder.inputs.feed`.
    """

    def __init__(self, file: Path, options: onnxruntime.SessionOptions, content: bytes | None = None) -> None:
        """Load a graph.

        Args:
            file: The ONNX file.
            options: Options for ONNX Runtime.
            content: What to load in place of the file, with its external data.

        Raises:
            ModelError: It is no decoder, or ONNX Runtime refuses it.
            OSError: The file cannot be read.
        """
        self.file = file
        self._model = open_inference_session(content or file, options, file.parent if content else None)
        inputs, outputs = self._model.get_inputs(), self._model.get_outputs()
        odd = [f"{value.name!r} ({value.type})" for value in inputs if not tensors_of([value])]
        if odd:
            raise ModelError(f"it needs the input {odd[0]}, which this runtime does not compute")
        self.interface: Interface = read_interface(file, tensors_of(inputs), tensors_of(outputs))
        self.mask_rows: int | None = None

    @property
    def tolerance(self) -> float:
        """The largest error of logits that rounding explains, relative to their standard deviation."""
        return ROUNDED if self.interface.is_rounded else EXACT

    def bind(self, caches: Mapping[Cache, TextCache]) -> BoundGraph:
        """Bind the graph to the caches of a text.

        Args:
            caches: The cache of the text for each of the interface.

        Returns:
            The bound graph.
        """
        return BoundGraph(self, self._model, caches)


class BoundGraph:
    """A graph that runs on the caches of one text."""

    def __init__(
        self, graph: DecoderGraph, model: onnxruntime.InferenceSession, caches: Mapping[Cache, TextCache]
    ) -> None:
        """Prepare a binding.

        Args:
            graph: The graph.
            model: Its session.
            caches: The cache of the text for each of the interface.
        """
        self._graph, self._model, self._caches = graph, model, list(caches.items())
        self._binding = model.io_binding()
        self._bound: dict[str, onnxruntime.OrtValue] = {}
        self._step_logits: onnxruntime.OrtValue | None = None  # of a run of one token

    def __call__(self, run: Run) -> np.ndarray:
        """Run the graph on some tokens, after the rows of the tokens before them.

        Args:
            run: The tokens.

        Returns:
            The logits float32 of the tokens that the graph gives logits of: of the last [1, V], of all, or of
            none [0, V]. The caller owns them.

        Raises:
            ModelError: ONNX Runtime fails.
        """
        feeds = feed(self._graph.interface, run, self._graph.mask_rows)
        for tensor, numbers in feeds:
            self._binding.bind_ortvalue_input(tensor.name, value_of(numbers, tensor.dtype))
        logits_name = self._graph.interface.logits.name
        is_step = (run.length or len(run.tokens)) == 1
        logits = self._step_logits if is_step else None
        self._bind_output(logits_name, logits)
        presents = [self._bind_cache(cache, own, run) for cache, own in self._caches]
        try:
            self._model.run_with_iobinding(self._binding)
        except Exception as error:  # its exceptions have no common base class
            raise model_error_from(error) from error
        if logits is None or None in presents:
            logits, *presents = self._binding.get_outputs()
        for (_, own), present in zip(self._caches, presents, strict=True):
            own.accept(present, run.stop)
        numbers = logits.numpy()
        if is_step:
            self._step_logits, numbers = logits, numbers.copy()  # the next step overwrites them
        rows = _float32(numbers, self._graph.interface.logits.dtype)
        rows = rows.reshape(-1, rows.shape[-1])
        return rows[: len(run.tokens)] if len(rows) == run.length else rows

    def _bind_cache(self, cache: Cache, own: TextCache, run: Run) -> onnxruntime.OrtValue | None:
        """Bind a cache; return its output, None if ONNX Runtime allocates it."""
        own.seek(run.start)
        if cache.past is not None:
            past = own.past(run.stop)
            if self._bound.get(cache.past.name) is not past:
                self._bound[cache.past.name] = past
                self._binding.bind_ortvalue_input(cache.past.name, past)
        present = own.present(run.stop)
        self._bind_output(cache.present.name, present)
        return present

    def _bind_output(self, name: str, value: onnxruntime.OrtValue | None) -> None:
        if value is None:
            self._bound.pop(name, None)
            self._binding.bind_output(name, "cpu")
        elif self._bound.get(name) is not value:
            self._bound[name] = value
            self._binding.bind_ortvalue_output(name, value)


def _float32(logits: np.ndarray, dtype: ir.DataType) -> np.ndarray:
    """Logits as float32. ONNX Runtime returns bfloat16 as its bits."""
    if dtype == ir.DataType.BFLOAT16:
        return (logits.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return logits.astype(np.float32, copy=False)
