"""LiteRT: TFLite models through its CompiledModel, on the CPU (XNNPACK).

Every cache is one buffer that decode takes as input and gives as output, so DYNAMIC_UPDATE_SLICE writes
the new row where it lies and nothing is copied from step to step. Measured on 2 cores, caches of 23 MB in
44 tensors, one step: 26 us this way, half of it the call itself; 0.9 us to write an input, 2 us to read
32,000 logits. A zero-copy view of a buffer, which needs ctypes and a private capsule, would save these.
"""

from __future__ import annotations

import atexit
import functools
from collections.abc import Sequence

import numpy as np

from o2o.errors import ModelError
from runtime_py.contract import Contract, Signature, Slot, Tensor
from runtime_py.engines.quiet import quiet, silence

with quiet():
    from ai_edge_litert.compiled_model import CompiledModel
    from ai_edge_litert.environment import Environment
    from ai_edge_litert.options import CpuOptions, HardwareAccelerator, Options
    from ai_edge_litert.tensor_buffer import TensorBuffer


class LiteRtEngine:
    """A `runtime_py.engines.Engine` on LiteRT."""

    def __init__(self, model: bytes, contract: Contract, *, threads: int = 1, debug: bool = False) -> None:
        """Load the TFLite file in `model`, described by `contract`.

        threads: how many LiteRT may use. debug: let it write its log to stderr.
        Raises ModelError when LiteRT refuses the file, or when decode does not hand its caches back.
        """
        self.capacity = contract.capacity
        self.vocab_size = contract.vocab_size
        self._contract = contract
        self._quiet = functools.partial(quiet, not debug)
        _check_in_place(contract.decode)
        self._file = model  # LiteRT reads weights where they are
        options = Options(HardwareAccelerator.CPU, CpuOptions(num_threads=threads))
        if not debug:
            atexit.register(silence)  # LiteRT logs the end of its environments
        with self._quiet():
            try:
                self._model = CompiledModel.from_buffer(model, environment=_environment(), options=options)
                self._caches = {
                    slot: self._model.create_input_buffer_by_name("decode", tensor.name)
                    for slot, tensor in contract.decode.caches.items()
                }
                self._prefill = _Call(self._model, contract.prefill, self._caches, contract.decode.caches)
                self._decode = _Call(self._model, contract.decode, self._caches, contract.decode.caches)
                for slot, tensor in contract.decode.caches.items():
                    # What is masked is still multiplied, by 0; so it must be a number.
                    _write(self._caches[slot], np.zeros(tensor.shape, tensor.dtype))
                self.decode(0, 0)  # what is done once is done, and said, now
            except RuntimeError as error:
                raise ModelError(f"LiteRT cannot take the model: {_reason(error)}") from error

    def prefill(self, tokens: Sequence[int]) -> np.ndarray:
        """See `Engine`. One run takes the first T ids; those beyond go through decode one by one."""
        length = self._contract.prefill_length
        at_once = min(len(tokens), length)
        padded = np.zeros(length, np.int64)
        padded[:at_once] = tokens[:at_once]
        self._prefill.feed("tokens", padded)
        self._prefill.feed("position", np.zeros(1, np.int64))
        self._prefill.run()
        for slot, rows in self._prefill.rows.items():
            self._fill(slot, rows, min(at_once, self.capacity))
        logits = self._prefill.logits(at_once)[-1]
        for position in range(at_once, len(tokens)):
            logits = self.decode(tokens[position], position)
        return logits

    def decode(self, token: int, position: int) -> np.ndarray:
        """See `Engine`."""
        self._decode.feed("tokens", np.array([token]))
        self._decode.feed("position", np.array([position]))
        self._decode.run()
        return self._decode.logits(1)[0]

    def close(self) -> None:
        """See `Engine`."""
        with self._quiet():
            del self._prefill, self._decode, self._caches
            self._model.close()
            del self._model

    def _fill(self, slot: Slot, rows: Tensor, count: int) -> None:
        """Put the first `count` rows that prefill made into the cache, in the cache's layout."""
        cache = self._contract.decode.caches[slot]
        made = _read(self._prefill.buffer(rows), rows)
        made = made.transpose([rows.layout.index(axis) for axis in cache.layout])
        time = cache.layout.index("T")
        made = made.take(range(count), time)
        if time == 1:  # its rows are one stretch at the beginning of the buffer
            _write(self._caches[slot], made)
            return
        whole = np.zeros(cache.shape, cache.dtype)
        whole[tuple(slice(n) for n in made.shape)] = made
        _write(self._caches[slot], whole)


@functools.cache
def _environment() -> Environment:
    """One for the process: LiteRT logs when one comes and when it goes."""
    return Environment.create()


def _reason(error: RuntimeError) -> str:
    """LiteRT's errors are a tree of lines, the cause last."""
    return (str(error).strip().splitlines() or [repr(error)])[-1].lstrip("└ ")


class _Call:
    """A signature with the buffers that it runs on."""

    def __init__(
        self,
        model: CompiledModel,
        signature: Signature,
        caches: dict[Slot, TensorBuffer],
        shapes: dict[Slot, Tensor],
    ) -> None:
        self._model = model
        self._index = model.get_signature_index(signature.name)
        self._buffers: dict[str, TensorBuffer] = {}
        self._inputs = {tensor.role: tensor for tensor in signature.inputs}
        self._logits = next(tensor for tensor in signature.outputs if tensor.role == "logits")
        self.rows: dict[Slot, Tensor] = {}
        """The keys and values that come out apart from the caches."""
        names = model.get_signature_list()[signature.name]
        known = {tensor.name: tensor for tensor in (*signature.inputs, *signature.outputs)}
        for name in names["inputs"]:
            tensor = known.get(name)
            if tensor and tensor.role.endswith("_cache"):
                self._buffers[name] = caches[tensor.slot]
            else:
                self._buffers[name] = model.create_input_buffer_by_name(signature.name, name)
        for name in names["outputs"]:
            tensor = known.get(name)
            if tensor and tensor.role in ("key", "value"):
                cache = shapes[tensor.slot]
                if (tensor.layout, tensor.shape) == (cache.layout, cache.shape):
                    self._buffers[name] = caches[tensor.slot]
                    continue
                self.rows[tensor.slot] = tensor
            self._buffers[name] = model.create_output_buffer_by_name(signature.name, name)
        self._ins = [self._buffers[name] for name in names["inputs"]]
        self._outs = [self._buffers[name] for name in names["outputs"]]

    def buffer(self, tensor: Tensor) -> TensorBuffer:
        return self._buffers[tensor.name]

    def feed(self, role: str, values: np.ndarray) -> None:
        """Write the input of that role, if there is one."""
        if tensor := self._inputs.get(role):
            _write(self._buffers[tensor.name], values.astype(tensor.dtype))

    def run(self) -> None:
        self._model.run_by_index(self._index, self._ins, self._outs)

    def logits(self, count: int) -> np.ndarray:
        """The first `count` rows of the logits, [count, V] float32, a copy."""
        flat = _read(self._buffers[self._logits.name], self._logits, count * self._logits.shape[-1])
        return flat.reshape(count, -1).astype(np.float32, copy=False)


def _write(buffer: TensorBuffer, values: np.ndarray) -> None:
    """Write `values` at the beginning of `buffer`. LiteRT copies bytes, but does not know int64 by name."""
    buffer.write(values.view(np.int32) if values.dtype == np.int64 else values)


def _read(buffer: TensorBuffer, tensor: Tensor, count: int | None = None) -> np.ndarray:
    """The tensor in `buffer`, or the first `count` numbers of it, flat."""
    if count is not None:
        return buffer.read(count, tensor.dtype)
    return buffer.read(int(np.prod(tensor.shape)), tensor.dtype).reshape(tensor.shape)


def _check_in_place(decode: Signature) -> None:
    for slot, cache in decode.caches.items():
        updated = decode.rows.get(slot)
        if updated is None or (updated.shape, updated.layout) != (cache.shape, cache.layout):
            raise ModelError(f"decode does not give {cache.name!r} back as it came: lower it for LiteRT")
