"""A signature of a compiled model, bound to its input and output buffers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from o2o.cli.silence_stderr import silenced_stderr
from runtime_py.engines.attention_mask import fill_mask
from runtime_py.engines.litert.compiled_model import RefusedByLiteRt
from runtime_py.engines.litert.kv_caches import CacheBuffers
from runtime_py.engines.litert.tensor_views import view
from runtime_py.model.contract import SignatureSpec, Slot, TensorSpec

with silenced_stderr():
    from ai_edge_litert.compiled_model import CompiledModel
    from ai_edge_litert.tensor_buffer import TensorBuffer


class BoundSignature:
    """A signature and its input and output buffers, except for the KV caches, which slots stand for."""

    spec: SignatureSpec
    silences: bool
    """Whether the next run is the first one: LiteRT then allocates tensors, and logs why it cannot."""
    rows: dict[Slot, tuple[TensorSpec, np.ndarray]]
    """The returned keys and values that are not in the KV caches."""

    def __init__(
        self, model: CompiledModel, signature: SignatureSpec, caches: Mapping[Slot, TensorSpec]
    ) -> None:
        """Allocate the buffers.

        Args:
            model: The model.
            signature: One of its signatures.
            caches: The KV caches that it runs on. A prefill without cache inputs may return rows of the
                shape of a cache, which are then written to it directly.

        Raises:
            RefusedByLiteRt: LiteRT cannot allocate the buffers.
        """
        self.spec = signature
        self._model = model
        self._index = model.get_signature_index(signature.name)
        self._ids = self._logits = np.zeros((1, 0))
        self._positions: list[np.ndarray] = []
        self._window_rows: list[np.ndarray] = []
        self._masks: list[np.ndarray] = []
        self._inputs: list[TensorBuffer | Slot] = []
        self._outputs: list[TensorBuffer | Slot] = []
        self._bound: CacheBuffers[TensorBuffer] | None = None  # the KV caches of the last run
        self._buffers: list[list[TensorBuffer]] = []
        self.silences = False
        self.rows = {}
        names = model.get_signature_list()[signature.name]
        for direction, tensors, buffers, create in (
            ("inputs", signature.inputs, self._inputs, model.create_input_buffer_by_name),
            ("outputs", signature.outputs, self._outputs, model.create_output_buffer_by_name),
        ):
            by_name = {tensor.name: tensor for tensor in tensors}
            for name in names[direction]:
                tensor = by_name.get(name)
                cache = caches.get(tensor.slot) if tensor else None
                if tensor and cache and (tensor.layout, tensor.shape) == (cache.layout, cache.shape):
                    buffers.append(tensor.slot)
                    continue
                buffer = create(signature.name, name)
                buffers.append(buffer)
                if tensor:
                    self._add(tensor, view(buffer, tensor.shape, tensor.dtype))

    def _add(self, tensor: TensorSpec, array: np.ndarray) -> None:
        match tensor.kind:
            case "tokens":
                self._ids = array[0]
            case "position":
                self._positions.append(array.reshape(-1))
            case "window_row":
                self._window_rows.append(array.reshape(-1))
            case "mask":
                self._masks.append(array)
            case "logits":
                self._logits = array.reshape(-1, array.shape[-1])
            case _:
                self.rows[tensor.slot] = tensor, array

    def takes(self, caches: Mapping[Slot, TensorSpec]) -> bool:
        """Return whether these KV caches are inputs.

        Args:
            caches: KV caches.

        Returns:
            Whether it has inputs of their shapes.
        """
        own = self.spec.caches
        return all(slot in own and own[slot].shape == cache.shape for slot, cache in caches.items())

    def allocate(self) -> CacheBuffers[TensorBuffer]:
        """Allocate KV caches.

        Returns:
            The buffers, filled with zeros.
        """
        buffers: dict[Slot, tuple[TensorBuffer, np.ndarray]] = {}
        for slot, cache in self.spec.caches.items():
            buffer = self._model.create_input_buffer_by_name(self.spec.name, cache.name)
            array = view(buffer, cache.shape, cache.dtype)
            # New memory of the system is zero, and takes no room before it is written.
            if array.view(f"u{array.itemsize}").any():
                array.fill(0)
            buffers[slot] = buffer, array
        return buffers

    def unbind(self, caches: Iterable[CacheBuffers[TensorBuffer]]) -> None:
        """Drop the references to these KV caches.

        Args:
            caches: The KV caches of each capacity of a session.
        """
        if any(buffers is self._bound for buffers in caches):
            self._bound, self._buffers = None, []

    def run(
        self, tokens: Sequence[int], position: int, window_row: int, caches: CacheBuffers[TensorBuffer]
    ) -> None:
        """Run the signature.

        Args:
            tokens: At most T ids.
            position: The position of the first.
            window_row: Its row in window caches.
            caches: The KV caches.

        Raises:
            RefusedByLiteRt: LiteRT cannot run it.
        """
        self._ids[: len(tokens)] = tokens
        self._ids[len(tokens) :] = 0
        for positions in self._positions:
            positions[:] = range(position, position + len(positions))
        for row in self._window_rows:
            row[:] = window_row
        for mask in self._masks:
            fill_mask(mask, position, len(tokens), len(self._ids))
        if caches is not self._bound:
            self._bound = caches
            self._buffers = [
                [caches[buffer][0] if isinstance(buffer, tuple) else buffer for buffer in buffers]
                for buffers in (self._inputs, self._outputs)
            ]
        if not self.silences:
            self._run()
            return
        try:
            with silenced_stderr():
                self._run()
        except RefusedByLiteRt as error:
            raise error.with_reason(self._run) from error
        self.silences = False

    def _run(self) -> None:
        try:
            self._model.run_by_index(self._index, *self._buffers)
        except RuntimeError as error:
            raise RefusedByLiteRt.from_error(error) from error

    def logits(self, rows: int | slice) -> np.ndarray:
        """Copy logits of the last run.

        Args:
            rows: The rows of the tokens.

        Returns:
            One row [V] float32, or several, [T, V].
        """
        return self._logits[rows].astype(np.float32)
