"""LiteRT engine: TFLite models through CompiledModel, on the CPU (XNNPACK).

The engine owns the buffers of tokens, positions and logits, which all sessions use in turns. A session owns
its KV caches. Each is one buffer. Decode, and prefills that start at any position, take it as input and as
output: DYNAMIC_UPDATE_SLICE writes the new rows in place, and nothing is copied from run to run. A model with
decode graphs of several capacities decodes in the smallest that holds the text.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from o2o.cli.silence_stderr import silenced_stderr
from o2o.cli.text import listed
from o2o.errors import ModelError
from o2o.signatures import classify_contract
from runtime_py.engines.cached_rows import CachedRows
from runtime_py.engines.finite_logits import check_logits
from runtime_py.engines.litert.bound_signature import BoundSignature
from runtime_py.engines.litert.compiled_model import compile_model, silence_at_exit
from runtime_py.engines.litert.kept_file import KeptFile
from runtime_py.engines.litert.kv_caches import CacheBuffers, KVCaches
from runtime_py.engines.litert.lowered_file import LoweredFile
from runtime_py.engines.litert.mapped_bytes import MappedBytes
from runtime_py.engines.litert.prepare import prepare
from runtime_py.engines.litert.root_tables import RootTables
from runtime_py.engines.litert.signature_group import SignatureGroup
from runtime_py.engines.model_file import ModelFile
from runtime_py.engines.options import EngineOptions
from runtime_py.engines.prefill_plan import Chunk, plan_chunks
from runtime_py.engines.step_lock import CLOSED_SESSION, EngineClosed, StepLock
from runtime_py.engines.token_ids import check_prompt, check_token
from runtime_py.model.contract import Contract, SignatureSpec

with silenced_stderr():
    from ai_edge_litert.compiled_model import CompiledModel
    from ai_edge_litert.tensor_buffer import TensorBuffer

MANY = 8
"""Signatures in use from which the next prompt that needs another one compiles all. Each further length of a
prompt would compile the ones in use again."""
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
            contract, verifiers, prefill_buckets = _parse(prepared.lowered)
            _log_missing_buckets(contract, options)
            engine = LiteRtEngine(
                file,
                contract,
                prefill_buckets=prefill_buckets,
                verifiers=verifiers if options.speculate else (),
                weight_dtype=prepared.lowered.weight_dtype,
                packed=prepared.packed,
                roots=prepared.lowered.roots if prepared.is_proven else None,
                compile_all=options.compile_all,
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


def _parse(lowered: LoweredFile) -> tuple[Contract, list[SignatureSpec], list[SignatureSpec]]:
    """The contract, the verifiers and the prefill buckets. Without any prefill, decode reads prompts."""
    signatures = lowered.contract.get("signatures", {})
    additional = {*lowered.verifiers, *lowered.prefill_buckets}
    public = {name: entries for name, entries in signatures.items() if name not in additional}
    contract = {**lowered.contract, "signatures": public}
    classified = classify_contract(public)
    if classified.decode is not None and not classified.prefills and len(public) == 1:
        parsed = Contract.parse_decode(contract)
    else:
        parsed = Contract.parse(contract)
    verifiers = parsed.parse_additional(lowered.contract, lowered.verifiers, logits=True)
    return parsed, verifiers, parsed.parse_additional(lowered.contract, lowered.prefill_buckets, logits=False)


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
        prefill_buckets: Sequence[SignatureSpec] = (),
        verifiers: Sequence[SignatureSpec] = (),
        weight_dtype: str = "",
        packed: Path | None = None,
        roots: RootTables | None = None,
        compile_all: bool = False,
        threads: int = 1,
        debug: bool = False,
    ) -> None:
        """Load a TFLite model.

        Args:
            model: The file's bytes or path.
            contract: Its signatures.
            prefill_buckets: Its prefills over fewer cache rows (`o2o.lower.litert.prefill_buckets`).
            verifiers: Its signatures that verify drafts (`o2o.lower.litert.draft_verifiers`).
            weight_dtype: The dtype of its weights, for display.
            packed: The file with its packed weights; None to pack them in memory.
            roots: Compile a signature when it is first used, with a root table of its own; None to compile
                all at once. LiteRT is known to take all of them.
            compile_all: Compile decodes, and the prefills of a prompt's begin, at once in any case.
            threads: Number of threads.
            debug: Whether LiteRT's log goes to stderr.

        Raises:
            ModelError: LiteRT refuses the model, or a signature does not return its KV caches.
        """
        self.contract = contract
        self.weight_dtype = weight_dtype
        self.capacity = contract.capacity
        self.vocab_size = contract.vocab_size
        self._prefills = {(prefill.length, self.capacity): prefill for prefill in contract.prefills}
        """The prefills by their number of tokens and the capacity of their KV caches."""
        self._prefills |= {(prefill.length, prefill.capacity): prefill for prefill in prefill_buckets}
        self._verifiers = {(verifier.length, verifier.capacity): verifier for verifier in verifiers}
        for signature in (*self._prefills.values(), *contract.decodes.values(), *verifiers):
            _check_in_place(signature)
        self._file = model  # LiteRT reads weights from this memory
        self._packed = None if packed is None else KeptFile(packed)
        self._roots = roots
        self._threads = threads
        self.steps = StepLock(self)
        if not debug:
            silence_at_exit()
        groups = [
            SignatureGroup(functools.partial(self._compile, number), debug)
            for number in range(1 + len(contract.decodes))
        ]
        self._main = groups[0]
        """The group of prefill and decode."""
        of_verifiers = groups[1:] if roots is not None else [self._main] * len(contract.decodes)
        self._verifying = dict(zip(contract.decodes, of_verifiers, strict=True))
        """The group of the verifiers of each capacity: most texts use none."""
        if roots is None:
            self._main.add({signature.name for signature in [*self._all, *verifiers]})
        elif compile_all:
            at_start = [self._prefills[T, self._prefill_capacity(T, 0)] for T, _ in self._prefills]
            self._main.add({signature.name for signature in [*at_start, *contract.decodes.values()]})
        with contextlib.closing(self.open_session()) as session:
            session.decode(0, 0)  # warm up: one-time work and its log lines happen here

    @property
    def _all(self) -> list[SignatureSpec]:
        """Prefills and decodes."""
        return [*self._prefills.values(), *self.contract.decodes.values()]

    @property
    def _groups(self) -> list[SignatureGroup]:
        return [self._main, *self._verifying.values()]

    def _compile(self, number: int, names: Collection[str]) -> CompiledModel:
        """Compile the signatures of a group."""
        if self._roots is not None and isinstance(self._file, MappedBytes):
            self._roots.select(names, number, self._file)
        packed = None if self._packed is None else self._packed.path
        return compile_model(self._file, packed, self._threads)

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
        capacity = next((one for one in self.contract.decodes if one > position), 0)
        return sorted(T for T, of in self._verifiers if of == capacity and position + T <= capacity)

    def verify_setup(self, length: int) -> float:
        """See `Engine`. A verifier takes as long to compile as a decode."""
        names = [verifier.name for (T, _), verifier in self._verifiers.items() if length == T]
        compiled = any(name in group for name in names for group in self._verifying.values())
        return 0.0 if compiled else self._main.seconds

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
        for group in self._groups:
            group.close()
        if self._packed is not None:
            self._packed.close()
        if isinstance(self._file, MappedBytes):
            self._file.close()

    def compile_for(self, chunk: Chunk, length: int) -> None:
        """Compile what a prompt needs, if it needs more than there is. Call it in a turn of `steps`.

        Two decode signatures are compiled with it, for the next tokens.

        Args:
            chunk: The next run.
            length: P, the number of tokens of the prompt.
        """
        if chunk.length > 1 and self._prefill(chunk).name not in self._main:
            prefills = [
                self._prefill(one) for one in [chunk, *self.plan(length, chunk.start)] if one.length > 1
            ]
            decodes = [decode for capacity, decode in self.contract.decodes.items() if capacity >= length]
            needed = [*decodes[:2], *prefills] if len(self._main) < MANY else self._all
            self._main.add({signature.name for signature in needed})

    def run(
        self, caches: KVCaches[TensorBuffer], length: int, tokens: Sequence[int], position: int
    ) -> BoundSignature:
        """Run the signature of one length. Call it in a turn of `steps`.

        Args:
            caches: The KV caches of a session.
            length: T, which identifies the signature; 1 for decode.
            tokens: At most T ids.
            position: The position of the first.

        Returns:
            The signature, with the logits of this run.
        """
        if length > 1:
            capacity = self._prefill_capacity(length, position)
            prefill = self._prefills[length, capacity]
            return self._run_on(self._main, caches, capacity, prefill, tokens, position)
        capacity = caches.smallest_capacity(position)
        spec = self.contract.decodes[capacity]
        if spec.name not in self._main and self._main:  # a long text: it will need them all
            self._main.add({decode.name for decode in self.contract.decodes.values()})
        return self._run_on(self._main, caches, capacity, spec, tokens, position)

    def _prefill(self, chunk: Chunk) -> SignatureSpec:
        return self._prefills[chunk.length, self._prefill_capacity(chunk.length, chunk.start)]

    def _prefill_capacity(self, length: int, position: int) -> int:
        """The smallest capacity of a prefill of this length that has room for a run at this position."""
        fitting = (rows for T, rows in self._prefills if length == T and position + T <= rows)
        return min(fitting, default=self.capacity)  # from position 0, a prefill may be longer

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
        spec = self._verifiers[length, capacity]
        run = self._run_on(self._verifying[capacity], caches, capacity, spec, tokens, position)
        return run.logits(slice(0, len(tokens)))

    def _run_on(
        self,
        group: SignatureGroup,
        caches: KVCaches[TensorBuffer],
        capacity: int,
        spec: SignatureSpec,
        tokens: Sequence[int],
        position: int,
    ) -> BoundSignature:
        """Run a signature of a group on the KV caches of one capacity."""
        slots = self.contract.decodes[capacity].caches
        group.get(spec, slots)  # compiled first, as it can allocate the caches
        buffers = caches.select(capacity, position, position + len(tokens), spec.length)
        signature = group.get(spec, slots)  # another one if other signatures had to be compiled
        window_row = position - caches.first_position(capacity)
        signature.run(tokens, position, window_row, buffers)
        if signature.rows and not spec.caches:
            window_row = -caches.hold_last(capacity, len(tokens))
        for slot, (tensor, rows) in signature.rows.items():
            cache = slots[slot]
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
        compiled = itertools.chain(*self._groups)
        bound = next((one for one in compiled if one.takes(decode.caches)), None)
        return (bound or self._main.get(decode, decode.caches)).allocate()

    def unbind(self, caches: KVCaches[TensorBuffer]) -> None:
        """Drop all references to the KV caches of a session.

        Args:
            caches: The KV caches.
        """
        for bound in itertools.chain(*self._groups):
            bound.unbind(caches.allocated.values())


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

    def _run(self, tokens: Sequence[int], chunk: Chunk) -> BoundSignature:
        self._engine.compile_for(chunk, len(tokens))
        return self._engine.run(self.kv_caches, chunk.length, tokens[chunk.start : chunk.stop], chunk.start)


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
