"""LiteRT engine: TFLite models through CompiledModel, on the CPU (XNNPACK).

The engine owns the buffers of tokens, positions and logits, which all sessions use in turns. A session owns
its KV caches. Each is one buffer. Decode, and prefills that start at any position, take it as input and as
output: DYNAMIC_UPDATE_SLICE writes the new rows in place, and nothing is copied from run to run. A model with
decode graphs of several capacities decodes in the smallest that holds the text.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from o2o.cli.silence_stderr import silenced_stderr
from o2o.cli.text import listed
from o2o.errors import ModelError
from o2o.signatures import classify_contract
from runtime_py.engines.attention_mask import fill_mask
from runtime_py.engines.cached_rows import CachedRows
from runtime_py.engines.finite_logits import check_logits
from runtime_py.engines.litert.compiled_model import RefusedByLiteRt, compile_model, silence_at_exit
from runtime_py.engines.litert.kv_caches import CacheBuffers, KVCaches
from runtime_py.engines.litert.lowered_file import LoweredFile
from runtime_py.engines.litert.mapped_bytes import MappedBytes
from runtime_py.engines.litert.prepare import prepare
from runtime_py.engines.litert.tensor_views import view
from runtime_py.engines.model_file import ModelFile
from runtime_py.engines.options import EngineOptions
from runtime_py.engines.prefill_plan import Chunk, plan_chunks
from runtime_py.engines.step_lock import CLOSED_SESSION, EngineClosed, StepLock
from runtime_py.engines.token_ids import check_prompt, check_token
from runtime_py.model.contract import Contract, SignatureSpec, Slot, TensorSpec

with silenced_stderr():
    from ai_edge_litert.compiled_model import CompiledModel
    from ai_edge_litert.tensor_buffer import TensorBuffer

MAX_DIFFERENCE = 0.02
"""Largest difference of a prefill's logits from decode's, in standard deviations of the logits."""


def load(model: ModelFile, options: EngineOptions) -> LiteRtEngine:
    """Load a model on LiteRT.

    Args:
        model: A Circle or TFLite file.
        options: All are used.

    Returns:
        The engine.

    Raises:
        ModelError: LiteRT cannot run the model.
        OSError: The file cannot be read.
    """
    with prepare(model, options) as prepared:
        file = prepared.open()
        try:
            contract, verifiers = _parse(prepared.lowered)
            _log_missing_buckets(contract, options)
            engine = LiteRtEngine(
                file,
                contract,
                verifiers=verifiers if options.speculate else (),
                weight_dtype=prepared.lowered.weight_dtype,
                packed=prepared.packed,
                threads=options.threads or 1,
                debug=options.debug,
            )
        except ModelError as error:
            raise ModelError(f"{model.path}: {error}") from error
    if options.all_logits and not _prefills_agree_with_decode(engine):
        engine.close()
        options.log("the logits of its prefills differ from those of decode, which is used instead")
        return load(model, replace(options, all_logits=False))
    return engine


def _parse(lowered: LoweredFile) -> tuple[Contract, list[SignatureSpec]]:
    """The contract of a model, and its verifiers. Without any prefill, decode reads prompts."""
    signatures = lowered.contract.get("signatures", {})
    public = {name: entries for name, entries in signatures.items() if name not in lowered.verifiers}
    contract = {**lowered.contract, "signatures": public}
    classified = classify_contract(public)
    if classified.decode is not None and not classified.prefills and len(public) == 1:
        parsed = Contract.parse_decode(contract)
    else:
        parsed = Contract.parse(contract)
    return parsed, parsed.parse_verifiers(lowered.contract, lowered.verifiers)


def _prefills_agree_with_decode(engine: LiteRtEngine) -> bool:
    """Compare the logits of a few tokens. Prefills may have been given logits (`restore_prefill_logits`)."""
    if not engine.gives_all_logits:
        return True
    count = min(5, engine.capacity)
    ids = [(index * 7 + 1) % engine.vocab_size for index in range(count)]
    with contextlib.closing(engine.open_session()) as session:
        logits = np.concatenate([*session.logits(ids)])
        expected = np.array([session.decode(token, position) for position, token in enumerate(ids)])
    return bool(np.abs(logits - expected).max() <= MAX_DIFFERENCE * expected.std())


class LiteRtEngine:
    """A `runtime_py.engines.engine.Engine` on LiteRT."""

    def __init__(
        self,
        model: bytes | MappedBytes | Path,
        contract: Contract,
        *,
        verifiers: Sequence[SignatureSpec] = (),
        weight_dtype: str = "",
        packed: Path | None = None,
        threads: int = 1,
        debug: bool = False,
    ) -> None:
        """Load a TFLite model.

        Args:
            model: The file's bytes or path.
            contract: Its signatures.
            verifiers: Its signatures that verify drafts (`o2o.lower.litert.draft_verifiers`).
            weight_dtype: The dtype of its weights, for display.
            packed: The file with its packed weights; None to pack them in memory.
            threads: Number of threads.
            debug: Whether LiteRT's log goes to stderr.

        Raises:
            ModelError: LiteRT refuses the model, or a signature does not return its KV caches.
        """
        self.contract = contract
        self.weight_dtype = weight_dtype
        self.capacity = contract.capacity
        self.vocab_size = contract.vocab_size
        self._quiet = functools.partial(silenced_stderr, not debug)
        self._verifier_specs = verifiers
        for signature in (*contract.prefills, *contract.decodes.values(), *verifiers):
            _check_in_place(signature)
        self._file = model  # LiteRT reads weights from this memory
        self.steps = StepLock(self)
        if not debug:
            silence_at_exit()
        start = functools.partial(self._start, model, packed, threads)
        try:
            with self._quiet():
                start()
        except RefusedByLiteRt as error:
            raise (error if debug else error.with_reason(start)) from error
        for bound in self._signatures:
            bound.silences = not debug

    def _start(self, model: bytes | MappedBytes | Path, packed: Path | None, threads: int) -> None:
        """Compile the model, allocate the buffers of all signatures, and run decode once."""
        self._model = compile_model(model, packed, threads)
        try:
            self._prefills = {
                prefill.length: _BoundSignature(self._model, prefill, self.contract.decode.caches)
                for prefill in self.contract.prefills
            }
            self._decodes = {
                capacity: _BoundSignature(self._model, decode, decode.caches)
                for capacity, decode in self.contract.decodes.items()
            }
            self._verifiers: dict[tuple[int, int], _BoundSignature] = {}
            for verifier in self._verifier_specs:
                capacity = max(cache.capacity for cache in verifier.caches.values())
                caches = self.contract.decodes[capacity].caches
                self._verifiers[verifier.length, capacity] = _BoundSignature(self._model, verifier, caches)
            session = self.open_session()
            session.decode(0, 0)  # warm up: one-time work and its log lines happen here
            session.close()
        except RuntimeError as error:
            raise RefusedByLiteRt.from_error(error) from error

    def plan(self, length: int, num_cached: int = 0) -> list[Chunk]:
        """See `EngineSession.plan`. Decode counts as a prefill of one token.

        Decode reads the last token if prefills give no logits.
        """
        prefills = self.contract.prefills
        anywhere = {1, *(prefill.length for prefill in prefills if prefill.caches)}
        at_start = {prefill.length for prefill in prefills} - anywhere
        if all(prefill.gives_logits for prefill in prefills):
            return plan_chunks(length, self.capacity, anywhere, at_start, num_cached, self._feeds_again)
        last = Chunk(1, length - 1, length)
        chunks = plan_chunks(length - 1, self.capacity, anywhere, at_start, num_cached, self._feeds_again)
        return [*chunks, last]

    @property
    def _feeds_again(self) -> bool:
        """Whether a run may start at any earlier position. Window caches hold the last positions only."""
        return self.contract.decode.window is None

    def verify_lengths(self, position: int) -> list[int]:
        """See `Engine`. A run uses the KV caches that a decode step would use."""
        capacity = next((one for one in self._decodes if one > position), 0)
        return sorted(T for T, of in self._verifiers if of == capacity and position + T <= capacity)

    @property
    def _signatures(self) -> list[_BoundSignature]:
        return [*self._prefills.values(), *self._decodes.values(), *self._verifiers.values()]

    @property
    def gives_all_logits(self) -> bool:
        """See `Engine`."""
        return any(prefill.gives_logits for prefill in self.contract.prefills)

    def plan_logits(self, length: int) -> list[Chunk]:
        """Return the runs that give the logits of each token of a text.

        Args:
            length: P, the number of tokens.

        Returns:
            The runs in order. Decode counts as a prefill of one token.
        """
        prefills = [prefill for prefill in self.contract.prefills if prefill.gives_logits]
        anywhere = {1, *(prefill.length for prefill in prefills if prefill.caches)}
        at_start = {prefill.length for prefill in prefills} - anywhere
        return plan_chunks(length, self.capacity, anywhere, at_start, feeds_again=self._feeds_again)

    def open_session(self) -> LiteRtSession:
        """See `Engine`."""
        return LiteRtSession(self)

    def close(self) -> None:
        """See `Engine`."""
        self.steps.close(self._free)

    def _free(self) -> None:
        with self._quiet():
            del self._prefills, self._decodes, self._verifiers
            self._model.close()
            del self._model
        if isinstance(self._file, MappedBytes):
            self._file.close()

    def run(
        self, caches: KVCaches[TensorBuffer], length: int, tokens: Sequence[int], position: int
    ) -> _BoundSignature:
        """Run the signature of one length. Call it in a turn of `steps`.

        Args:
            caches: The KV caches of a session.
            length: T, which identifies the signature; 1 for decode.
            tokens: At most T ids.
            position: The position of the first.

        Returns:
            The signature, with the logits of this run.
        """
        capacity = caches.smallest_capacity(position) if length == 1 else self.capacity
        signature = self._decodes[capacity] if length == 1 else self._prefills[length]
        return self._run_on(caches, capacity, signature, tokens, position)

    def verify(self, caches: KVCaches[TensorBuffer], tokens: Sequence[int], position: int) -> np.ndarray:
        """Run the signature that verifies a draft. Call it in a turn of `steps`.

        Args:
            caches: The KV caches of a session.
            tokens: At most as many ids as the largest of `verify_lengths`.
            position: The position of the first.

        Returns:
            The logits [T, V] float32 that follow each token.
        """
        capacity = caches.smallest_capacity(position)
        length = next(T for T in self.verify_lengths(position) if len(tokens) <= T)
        verifier = self._verifiers[length, capacity]
        return self._run_on(caches, capacity, verifier, tokens, position).logits(slice(0, len(tokens)))

    def _run_on(
        self,
        caches: KVCaches[TensorBuffer],
        capacity: int,
        signature: _BoundSignature,
        tokens: Sequence[int],
        position: int,
    ) -> _BoundSignature:
        """Run a signature on the KV caches of one capacity."""
        length = signature.spec.length
        buffers = caches.select(capacity, position, position + len(tokens), length)
        window_row = position - caches.first_position(capacity)
        signature.run(tokens, position, window_row, buffers)
        if signature.rows and not signature.spec.caches:
            window_row = -caches.hold_last(capacity, len(tokens))
        for slot, (tensor, rows) in signature.rows.items():
            cache = self._decodes[capacity].spec.caches[slot]
            rows = rows.transpose([tensor.layout.index(axis) for axis in cache.layout])
            before = (slice(None),) * cache.layout.index("T")
            row = position if cache.role.capacity is None else window_row
            written = (*before, slice(max(0, row), row + len(tokens)))
            buffers[slot][1][written] = rows[(*before, slice(max(0, -row), len(tokens)))]
        return signature

    def allocate(self, decode: SignatureSpec) -> CacheBuffers[TensorBuffer]:
        """Allocate the KV caches of a session.

        Args:
            decode: The decode signature of the requested capacity.

        Returns:
            The buffers, filled with zeros.
        """
        buffers: dict[Slot, tuple[TensorBuffer, np.ndarray]] = {}
        for slot, cache in decode.caches.items():
            buffer = self._model.create_input_buffer_by_name(decode.name, cache.name)
            buffers[slot] = buffer, view(buffer, cache.shape, cache.dtype)
            buffers[slot][1].fill(0)
        return buffers

    def unbind(self, caches: KVCaches[TensorBuffer]) -> None:
        """Drop all references to the KV caches of a session.

        Args:
            caches: The KV caches.
        """
        for signature in self._signatures:
            signature.unbind(caches.allocated.values())


class LiteRtSession:
    """A `runtime_py.engines.engine.EngineSession` on LiteRT."""

    def __init__(self, engine: LiteRtEngine) -> None:
        """Open a session. Its KV caches are allocated at the first run.

        Args:
            engine: The engine.
        """
        self.capacity, self.vocab_size, self.plan = engine.capacity, engine.vocab_size, engine.plan
        self.kv_caches: KVCaches[TensorBuffer] = KVCaches(engine.contract.decodes, engine.allocate)
        self._engine = engine
        self._steps = engine.steps

    def prefill(self, tokens: Sequence[int], num_cached: int = 0) -> np.ndarray:
        """See `EngineSession`."""
        tokens = check_prompt(tokens, self, num_cached)
        *chunks, last = self.plan(len(tokens), self.reusable(num_cached))
        for chunk in chunks:
            with self._steps.turn():
                self.run(tokens, chunk)
        with self._steps.turn():
            logits = self._run(tokens, last).logits(last.stop - last.start - 1)
        return check_logits(logits, last.stop - 1)

    def run(self, tokens: Sequence[int], chunk: Chunk) -> None:
        """See `EngineSession`."""
        tokens = check_prompt(tokens, self)
        self._run(tokens, chunk)

    def decode(self, token: int, position: int) -> np.ndarray:
        """See `EngineSession`."""
        token = check_token(token, position, self)
        with self._steps.turn():
            logits = self._engine.run(self.kv_caches, 1, [token], position).logits(0)
        return check_logits(logits, position)

    def logits(self, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        """See `EngineSession`."""
        tokens = check_prompt(tokens, self, name="the text")
        done = 0
        for chunk in self._engine.plan_logits(len(tokens)):
            new = slice(done - chunk.start, chunk.stop - chunk.start)  # without tokens that are fed again
            with self._steps.turn():
                logits = self._run(tokens, chunk).logits(new)
            yield check_logits(logits, done)
            done = chunk.stop

    def verify(self, tokens: Sequence[int], position: int) -> np.ndarray:
        """See `EngineSession`."""
        with self._steps.turn():
            return self._engine.verify(self.kv_caches, tokens, position)

    def reusable(self, count: int) -> int:
        """See `EngineSession`."""
        return self.kv_caches.reusable(count)

    def copy_rows(self, source: LiteRtSession, start: int, stop: int) -> None:
        """See `EngineSession`."""
        self.kv_caches.copy_rows(source.kv_caches, start, stop)

    def read_rows(self, stop: int) -> CachedRows:
        """See `EngineSession`."""
        return self.view_rows(stop).copied()

    def view_rows(self, stop: int) -> CachedRows:
        """See `runtime_py.engines.phased_engine.PhaseSession`."""
        return self.kv_caches.view_rows(stop)

    def write_rows(self, rows: CachedRows, start: int, stop: int) -> None:
        """See `EngineSession`."""
        self.kv_caches.write_rows(rows, start, stop)

    def close(self) -> None:
        """See `EngineSession`."""
        with contextlib.suppress(EngineClosed), self._steps.turn():
            self._engine.unbind(self.kv_caches)
        self._steps = CLOSED_SESSION
        self.kv_caches.close()

    def _run(self, tokens: Sequence[int], chunk: Chunk) -> _BoundSignature:
        return self._engine.run(self.kv_caches, chunk.length, tokens[chunk.start : chunk.stop], chunk.start)


class _BoundSignature:
    """A signature and its input and output buffers, except for the KV caches, which slots stand for."""

    def __init__(
        self, model: CompiledModel, signature: SignatureSpec, caches: Mapping[Slot, TensorSpec]
    ) -> None:
        """Allocate the buffers.

        Args:
            model: The model.
            signature: One of its signatures.
            caches: The KV caches that it runs on. A prefill without cache inputs may return rows of the
                shape of a cache, which are then written to it directly.
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
        """Whether the next run is the first one: LiteRT then allocates tensors, and logs why it cannot."""
        self.rows: dict[Slot, tuple[TensorSpec, np.ndarray]] = {}
        """The returned keys and values that are not in the KV caches."""
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

    def unbind(self, caches: Iterable[CacheBuffers[TensorBuffer]]) -> None:
        """Drop the references to these KV caches."""
        if any(buffers is self._bound for buffers in caches):
            self._bound, self._buffers = None, []

    def run(
        self, tokens: Sequence[int], position: int, window_row: int, caches: CacheBuffers[TensorBuffer]
    ) -> None:
        """Feed at most T ids, the first at `position`, in row `window_row` of window caches."""
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
        """A copy of one row of the logits, [V] float32, or of several, [T, V]."""
        return self._logits[rows].astype(np.float32)


def _check_in_place(signature: SignatureSpec) -> None:
    for slot, cache in signature.caches.items():
        updated = signature.cache_outputs.get(slot)
        if updated is None:
            raise ModelError(
                f"{signature.name} does not return the KV cache {cache.name!r}: lower it for LiteRT"
            )
        is_rows = updated.heads == cache.heads and updated.num_rows == signature.length
        if (updated.shape, updated.layout) != (cache.shape, cache.layout) and not is_rows:
            raise ModelError(
                f"{signature.name} returns {list(updated.shape)} for the KV cache {cache.name!r} "
                f"{list(cache.shape)}, neither this cache nor its {signature.length} new rows: "
                "run fuse.attention.py, then lower.litert.py"
            )


def _log_missing_buckets(contract: Contract, options: EngineOptions) -> None:
    """Log the requested buckets for which there is no decode graph."""
    missing = [str(rows) for rows in options.buckets or () if rows not in contract.decodes]
    if missing:
        capacities = listed([str(capacity) for capacity in contract.decodes])
        options.log(f"--buckets: no decode graph of capacity {listed(missing)}; the model has {capacities}")
