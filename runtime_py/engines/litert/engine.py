"""LiteRT: TFLite models through its CompiledModel, on the CPU (XNNPACK).

Every cache is one buffer. Decode and the prefills that start anywhere take it as input and give it as
output, so DYNAMIC_UPDATE_SLICE writes the new rows where they lie and nothing is copied from run to run.
Where the model has decode in several capacities, the text goes on in the smallest that holds it.
"""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from o2o.cli.silence_stderr import quiet, silence
from o2o.errors import ModelError
from runtime_py.engines.litert.kv_caches import Caches, Made
from runtime_py.engines.litert.mapped_bytes import FileBehind
from runtime_py.engines.litert.tensor_views import view
from runtime_py.engines.prefill_plan import Chunk, chunks
from runtime_py.model.contract import Contract, Signature, Slot, Tensor

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
        for signature in (*contract.prefills, *contract.decodes.values()):
            _check_in_place(signature)
        self._file = model  # LiteRT reads weights where they are
        if not debug:
            atexit.register(silence)  # LiteRT logs the end of its environments
        with self._quiet():
            try:
                self._model = _load(model, str(packed or IN_MEMORY), threads)
                self._caches: Caches[TensorBuffer] = Caches(contract.decodes, self._empty)
                caches = contract.decode.caches
                self._prefills = {
                    prefill.length: _Call(self._model, prefill, caches) for prefill in contract.prefills
                }
                self._decodes = {
                    capacity: _Call(self._model, decode, decode.caches)
                    for capacity, decode in contract.decodes.items()
                }
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
            call = self._run(chunk.length, tokens[chunk.start : chunk.stop], chunk.start)
        return call.logits(chunk.stop - chunk.start - 1)

    def decode(self, token: int, position: int) -> np.ndarray:
        """See `Engine`."""
        return self._run(1, [token], position).logits(0)

    def close(self) -> None:
        """See `Engine`."""
        with self._quiet():
            del self._prefills, self._decodes, self._caches
            self._model.close()
            del self._model
        if isinstance(self._file, FileBehind):
            self._file.close()

    def _run(self, length: int, tokens: Sequence[int], position: int) -> _Call:
        """Feed these ids, at most `length`, from `position` on to the signature of that length."""
        capacity = self._caches.fitting(position) if length == 1 else self.capacity
        call = self._decodes[capacity] if length == 1 else self._prefills[length]
        caches = self._caches.at(capacity, position, position + len(tokens))
        call.run(tokens, position, caches)
        for slot, (rows, made) in call.rows.items():
            layout = self._contract.decode.caches[slot].layout
            made = made.transpose([rows.layout.index(axis) for axis in layout])
            time = (slice(None),) * layout.index("T") + (slice(len(tokens)),)
            caches[slot][1][time] = made[time]
        return call

    def _empty(self, decode: Signature) -> Made[TensorBuffer]:
        """New caches for `decode`, all zeros."""
        made: dict[Slot, tuple[TensorBuffer, np.ndarray]] = {}
        for slot, cache in decode.caches.items():
            buffer = self._model.create_input_buffer_by_name(decode.name, cache.name)
            made[slot] = buffer, view(buffer, cache.shape, cache.dtype)
            made[slot][1].fill(0)
        return made


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
    """A signature with the buffers that it runs on, but for the caches, in whose place stand their slots.

    caches: those that it runs on. A prefill that takes none may give what has the very shape of one.
    """

    def __init__(self, model: CompiledModel, signature: Signature, caches: Mapping[Slot, Tensor]) -> None:
        self._model = model
        self._index = model.get_signature_index(signature.name)
        self._ends: dict[str, np.ndarray] = {}  # by role: tokens, position, logits
        self._ins: list[TensorBuffer | Slot] = []
        self._outs: list[TensorBuffer | Slot] = []
        self._bound: Made[TensorBuffer] | None = None  # the caches that were run on last
        self._buffers: list[list[TensorBuffer]] = []
        self.rows: dict[Slot, tuple[Tensor, np.ndarray]] = {}
        """The keys and values that come out elsewhere than in the caches."""
        names = model.get_signature_list()[signature.name]
        for end, tensors, buffers, create in (
            ("inputs", signature.inputs, self._ins, model.create_input_buffer_by_name),
            ("outputs", signature.outputs, self._outs, model.create_output_buffer_by_name),
        ):
            known = {tensor.name: tensor for tensor in tensors}
            for name in names[end]:
                tensor = known.get(name)
                cache = caches.get(tensor.slot) if tensor else None
                if tensor and cache and (tensor.layout, tensor.shape) == (cache.layout, cache.shape):
                    buffers.append(tensor.slot)
                    continue
                buffer = create(signature.name, name)
                buffers.append(buffer)
                if tensor:
                    memory = view(buffer, tensor.shape, tensor.dtype)
                    if cache:
                        self.rows[tensor.slot] = tensor, memory
                    else:
                        self._ends[tensor.kind] = memory

    def run(self, tokens: Sequence[int], position: int, caches: Made[TensorBuffer]) -> None:
        """Feed these ids, as many as fit or fewer, from `position` on, with `caches`."""
        ids = self._ends["tokens"][0]
        ids[: len(tokens)] = tokens
        ids[len(tokens) :] = 0
        if (positions := self._ends.get("position")) is not None:
            positions[:] = range(position, position + len(positions))
        if caches is not self._bound:
            self._bound = caches
            self._buffers = [
                [caches[end][0] if isinstance(end, tuple) else end for end in ends]
                for ends in (self._ins, self._outs)
            ]
        self._model.run_by_index(self._index, *self._buffers)

    def logits(self, row: int) -> np.ndarray:
        """That row of the logits, [V] float32, a copy."""
        return self._ends["logits"][0, row].astype(np.float32)


def _check_in_place(signature: Signature) -> None:
    for slot, cache in signature.caches.items():
        updated = signature.rows.get(slot)
        if updated is None or (updated.shape, updated.layout) != (cache.shape, cache.layout):
            raise ModelError(
                f"{signature.name} does not give {cache.name!r} back as it came: lower it for LiteRT"
            )
