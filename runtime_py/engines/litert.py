"""LiteRT: TFLite models through its CompiledModel, on the CPU (XNNPACK).

Every cache is one buffer. Decode and the prefills that start anywhere take it as input and give it as
output, so DYNAMIC_UPDATE_SLICE writes the new rows where they lie and nothing is copied from run to run. Ids
go in and logits come out through the public `write` and `read`, which copy; zero-copy views would need ctypes
and a private capsule.
"""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from o2o.errors import ModelError
from o2o.quiet import quiet, silence
from runtime_py.chunks import Chunk, chunks
from runtime_py.contract import Contract, Signature, Slot, Tensor
from runtime_py.mapping import FileBehind

with quiet():
    from ai_edge_litert.compiled_model import CompiledModel
    from ai_edge_litert.environment import Environment
    from ai_edge_litert.options import CpuOptions, HardwareAccelerator, Options
    from ai_edge_litert.tensor_buffer import TensorBuffer

IN_MEMORY = ":memory" if hasattr(os, "memfd_create") else ""
"""Instead of a file for packed weights: packed once for all signatures; with no name, once for each."""


class LiteRtEngine:
    """A `runtime_py.engines.Engine` on LiteRT."""

    def __init__(
        self,
        model: bytes | FileBehind | Path,
        contract: Contract,
        *,
        packed: Path | None = None,
        threads: int = 1,
        debug: bool = False,
    ) -> None:
        """Load the TFLite file that `model` is, or that lies there, described by `contract`.

        packed: the file in which `pack` has put the weights of this very model; None to pack them now, in
        memory. threads: how many LiteRT may use. debug: let it write its log to stderr.
        Raises ModelError when LiteRT refuses the file, or when a signature does not hand its caches back.
        """
        self.capacity = contract.capacity
        self.vocab_size = contract.vocab_size
        self._contract = contract
        self._quiet = functools.partial(quiet, not debug)
        for signature in (*contract.prefills, contract.decode):
            _check_in_place(signature)
        self._file = model  # LiteRT reads weights where they are
        if not debug:
            atexit.register(silence)  # LiteRT logs the end of its environments
        with self._quiet():
            try:
                self._model = _load(model, str(packed or IN_MEMORY), threads)
                self._caches = {
                    slot: self._model.create_input_buffer_by_name("decode", tensor.name)
                    for slot, tensor in contract.decode.caches.items()
                }
                self._calls = {
                    signature.length: _Call(self._model, signature, self._caches, contract.decode.caches)
                    for signature in (*contract.prefills, contract.decode)
                }
                for slot, tensor in contract.decode.caches.items():
                    # What is masked is still multiplied, by 0; so it must be a number.
                    _write(self._caches[slot], np.zeros(tensor.shape, tensor.dtype))
                self.decode(0, 0)  # what is done once is done, and said, now
            except RuntimeError as error:
                raise ModelError(f"LiteRT cannot take the model: {_reason(error)}") from error

    def plan(self, prompt: int, kept: int = 0) -> list[Chunk]:
        """See `Engine`. Decode counts as a prefill of one token: it reads the last one where prefills give no
        logits."""
        prefills = self._contract.prefills
        anywhere = {1, *(prefill.length for prefill in prefills if prefill.caches)}
        at_start = {prefill.length for prefill in prefills} - anywhere
        if all(prefill.gives_logits for prefill in prefills):
            return chunks(prompt, self.capacity, anywhere, at_start, kept)
        last = Chunk(1, prompt - 1, prompt)
        return [*chunks(prompt - 1, self.capacity, anywhere, at_start, kept), last]

    def prefill(self, tokens: Sequence[int], kept: int = 0) -> np.ndarray:
        """See `Engine`."""
        for chunk in self.plan(len(tokens), kept):
            self._run(chunk.length, tokens[chunk.start : chunk.stop], chunk.start)
        return self._calls[chunk.length].logits(chunk.stop - chunk.start)[-1]

    def decode(self, token: int, position: int) -> np.ndarray:
        """See `Engine`."""
        self._run(1, [token], position)
        return self._calls[1].logits(1)[0]

    def close(self) -> None:
        """See `Engine`."""
        with self._quiet():
            del self._calls, self._caches
            self._model.close()
            del self._model
        if isinstance(self._file, FileBehind):
            self._file.close()

    def _run(self, length: int, tokens: Sequence[int], position: int) -> None:
        """Feed these ids, at most `length`, from `position` on to the signature of that length."""
        call = self._calls[length]
        padded = np.zeros(length, np.int64)
        padded[: len(tokens)] = tokens
        call.feed("tokens", padded)
        call.feed("position", position + np.arange(length))
        call.run()
        for slot, (rows, buffer) in call.rows.items():
            self._fill(slot, rows, buffer, len(tokens))

    def _fill(self, slot: Slot, rows: Tensor, buffer: TensorBuffer, count: int) -> None:
        """Put the first `count` rows that prefill left in `buffer` into the cache, in the cache's layout."""
        cache = self._contract.decode.caches[slot]
        made = buffer.read(int(np.prod(rows.shape)), rows.dtype).reshape(rows.shape)
        made = made.transpose([rows.layout.index(axis) for axis in cache.layout])
        time = cache.layout.index("T")
        made = made.take(range(count), time)
        if time == 1:  # its rows are one stretch at the beginning of the buffer
            _write(self._caches[slot], made)
            return
        whole = np.zeros(cache.shape, cache.dtype)
        whole[tuple(slice(n) for n in made.shape)] = made
        _write(self._caches[slot], whole)


def pack(model: bytes | FileBehind | Path, file: Path) -> None:
    """Put the weights of `model` into the new `file`, ordered as XNNPACK computes with them on this machine.

    LiteRT ends the process when the disk becomes full, and does not check later whether weights and file
    belong together. Raises ModelError.
    """
    atexit.register(silence)
    with quiet():
        try:
            _load(model, str(file), threads=1).close()
        except RuntimeError as error:
            raise ModelError(f"LiteRT cannot take the model: {_reason(error)}") from error


def _load(model: bytes | FileBehind | Path, packed: str, threads: int) -> CompiledModel:
    cpu = CpuOptions(num_threads=threads, xnnpack_weight_cache_path=packed)
    options = Options(HardwareAccelerator.CPU, cpu)
    if isinstance(model, Path):
        return CompiledModel.from_file(str(model), environment=_environment(), options=options)
    data = model.data if isinstance(model, FileBehind) else model
    return CompiledModel.from_buffer(data, environment=_environment(), options=options)


@functools.cache
def _environment() -> Environment:
    """One for the process: LiteRT logs when one comes and when it goes."""
    return Environment.create()


def _reason(error: RuntimeError) -> str:
    """LiteRT's errors are a tree of lines, the cause last."""
    return (str(error).strip().splitlines() or [repr(error)])[-1].lstrip("└ ")


class _Call:
    """A signature with the buffers that it runs on. What has the shape of a cache is that cache's buffer."""

    def __init__(
        self,
        model: CompiledModel,
        signature: Signature,
        caches: dict[Slot, TensorBuffer],
        shapes: dict[Slot, Tensor],
    ) -> None:
        self._model = model
        self._index = model.get_signature_index(signature.name)
        self._ends: dict[str, tuple[Tensor, TensorBuffer]] = {}  # by role: tokens, position, logits
        self._ins: list[TensorBuffer] = []
        self._outs: list[TensorBuffer] = []
        self.rows: dict[Slot, tuple[Tensor, TensorBuffer]] = {}
        """The keys and values that come out elsewhere than in the caches."""
        names = model.get_signature_list()[signature.name]
        for end, tensors, buffers, create in (
            ("inputs", signature.inputs, self._ins, model.create_input_buffer_by_name),
            ("outputs", signature.outputs, self._outs, model.create_output_buffer_by_name),
        ):
            known = {tensor.name: tensor for tensor in tensors}
            for name in names[end]:
                tensor = known.get(name)
                cache = shapes.get(tensor.slot) if tensor else None
                if tensor and cache and (tensor.layout, tensor.shape) == (cache.layout, cache.shape):
                    buffers.append(caches[tensor.slot])
                    continue
                buffers.append(create(signature.name, name))
                if tensor and cache:
                    self.rows[tensor.slot] = tensor, buffers[-1]
                elif tensor:
                    self._ends[tensor.role] = tensor, buffers[-1]

    def feed(self, role: str, values: np.ndarray) -> None:
        """Write the input of that role, if there is one: as many of `values` as it takes."""
        if role in self._ends:
            tensor, buffer = self._ends[role]
            _write(buffer, values[: tensor.shape[-1]].astype(tensor.dtype))

    def run(self) -> None:
        self._model.run_by_index(self._index, self._ins, self._outs)

    def logits(self, count: int) -> np.ndarray:
        """The first `count` rows of the logits, [count, V] float32, a copy."""
        tensor, buffer = self._ends["logits"]
        flat = buffer.read(count * tensor.shape[-1], tensor.dtype)
        return flat.reshape(count, -1).astype(np.float32, copy=False)


def _write(buffer: TensorBuffer, values: np.ndarray) -> None:
    """Write `values` at the beginning of `buffer`. LiteRT copies bytes, but does not know int64 by name."""
    buffer.write(values.view(np.int32) if values.dtype == np.int64 else values)


def _check_in_place(signature: Signature) -> None:
    for slot, cache in signature.caches.items():
        updated = signature.rows.get(slot)
        if updated is None or (updated.shape, updated.layout) != (cache.shape, cache.layout):
            raise ModelError(
                f"{signature.name} does not give {cache.name!r} back as it came: lower it for LiteRT"
            )
