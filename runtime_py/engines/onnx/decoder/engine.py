"""Engine for decoders in ONNX that other tools exported, and its sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from o2o.cli.silence_stderr import silenced_stderr
from o2o.contract import Role
from runtime_py.engines.cached_rows import CachedRows, check_tensors
from runtime_py.engines.finite_logits import check_logits
from runtime_py.engines.onnx.decoder.caches import InPlaceCache, TextCache
from runtime_py.engines.onnx.decoder.graph import DecoderGraph
from runtime_py.engines.onnx.decoder.inputs import Run
from runtime_py.engines.onnx.decoder.interface import Cache
from runtime_py.engines.onnx.decoder.trial import Abilities, matching, try_out
from runtime_py.engines.onnx.inference_session import session_options
from runtime_py.engines.onnx.run_sizes import MAX_CHUNK, MAX_LOGITS, VERIFY_LENGTHS
from runtime_py.engines.prefill_plan import Chunk, plan_chunks, split_evenly
from runtime_py.engines.step_lock import CLOSED_SESSION, StepLock
from runtime_py.engines.token_ids import check_prompt, check_token
from runtime_py.model.contract import Contract, SignatureSpec, TensorSpec
from runtime_py.model.model_config import read_model_config
from runtime_py.model.weight_dtype import onnx_weight_dtype

MIN_CHUNK = 64
"""Tokens of a run that a decoder with many logits reads at least."""
DEFAULT_POSITIONS = 4096
"""S, where neither the graph nor a file beside it says how many positions the model has."""
STEP_FILES = {"decoder_model.onnx": "decoder_with_past_model.onnx"}
"""By the file that begins a text: the file that continues it, as Optimum writes both."""


class DecoderEngine:
    """A `runtime_py.engines.engine.Engine` for a decoder in ONNX as it was exported."""

    def __init__(
        self,
        file: Path,
        *,
        threads: int = 1,
        debug: bool = False,
        content: bytes | None = None,
        speculate: bool = True,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Load a decoder. Its inputs and outputs are recognized by `o2o.roles`.

        Args:
            file: The ONNX file, with external data in its folder.
            threads: Number of threads.
            debug: Whether ONNX Runtime's log goes to stderr.
            content: What to load in place of the file, with its external data.
            speculate: See `EngineOptions`.
            log: Called with one line if the decoder cannot be run in the usual way.

        Raises:
            ModelError: It is no decoder of text, or ONNX Runtime refuses it.
            OSError: The file cannot be read.
        """
        self.steps = StepLock(self)
        self._file, self._speculates = file, speculate
        with silenced_stderr(not debug):
            self.step, self.first = _load_graphs(file, threads, debug, content)
            config = read_model_config(file)
            self.abilities: Abilities = try_out(self.step, self.first, config)
        self.vocab_size = self.abilities.vocab_size
        rows, lengths = self.abilities.rows, self.abilities.lengths
        if rows is not None and lengths is not None and self.abilities.openers:
            rows -= min(lengths) - 1  # a token is read with padding after it
        limits = (rows, config.positions, self.step.interface.positions)
        self.capacity = min((limit for limit in limits if limit is not None), default=DEFAULT_POSITIONS)
        if not any(limits):
            log(f"no config.json says how many positions the model has: it gets {DEFAULT_POSITIONS}")
        if not self.abilities.openers:
            log("the model has no KV caches that work: each token reads the whole text again")
        elif not self.abilities.continues or self.abilities.lengths == {1: True}:
            log("the model reads only one token after others: long prompts are slow")
        self.contract = Contract((), {self.capacity: self._signature()}, self.vocab_size)

    @cached_property
    def weight_dtype(self) -> str:
        """See `Engine`."""
        return onnx_weight_dtype(self._file)

    @property
    def gives_all_logits(self) -> bool:
        """See `Engine`."""
        able = self.abilities
        return able.gives_all_logits and (able.continues or not able.openers) and able.lengths != {1: True}

    def verify_lengths(self, position: int) -> list[int]:
        """See `Engine`. None where going back to an earlier token is slow, or logits depend on the run."""
        return [length for length in self._verify_lengths if position + length <= self.capacity]

    def verify_setup(self, length: int) -> float:
        """See `Engine`."""
        return 0.0

    @cached_property
    def _verify_lengths(self) -> tuple[int, ...]:
        able = self.abilities
        goes_back = all(isinstance(create(), InPlaceCache) for create in able.openers.values())
        if not (self._speculates and self.gives_all_logits and able.openers and goes_back and able.is_exact):
            return ()
        return VERIFY_LENGTHS if able.lengths is None else tuple(able.lengths)[1:]

    @cached_property
    def _max_chunk(self) -> int:
        if not self.abilities.gives_all_logits:
            return MAX_CHUNK
        return max(MIN_CHUNK, min(MAX_CHUNK, MAX_LOGITS // (4 * self.vocab_size)))

    def plan(self, length: int, num_cached: int = 0) -> list[Chunk]:
        """See `EngineSession.plan`. One run for a decoder without KV caches."""
        able = self.abilities
        if not able.openers:
            return [Chunk(length - num_cached, num_cached, length)]
        if able.lengths is not None:
            return self._plan_fixed(able.lengths, length, num_cached)
        if able.continues and (able.starts or num_cached):
            return split_evenly(num_cached, length, self._max_chunk)
        start = num_cached
        first = []
        if start == 0 and able.starts:
            first = [Chunk(length, 0, length)]
            start = length
        return [*first, *split_evenly(start, length, 1)]

    def _plan_fixed(self, lengths: Mapping[int, bool], length: int, num_cached: int) -> list[Chunk]:
        """Runs of fixed lengths. The last one returns logits."""
        if all(lengths.values()):
            return plan_chunks(length, self.capacity, lengths, num_cached=num_cached)
        last = length - 1
        before = plan_chunks(last, self.capacity, lengths, num_cached=num_cached) if last > num_cached else []
        return [*before, Chunk(min(lengths), last, length)]

    def plan_logits(self, length: int) -> list[Chunk]:
        """Return the runs that give the logits of each token of a text.

        Args:
            length: P, the number of tokens.

        Returns:
            The runs in order. Some may begin before the end of the run before.
        """
        able = self.abilities
        if not able.openers:
            return split_evenly(0, length, length if able.gives_all_logits else 1)
        if able.lengths is not None:
            return plan_chunks(length, self.capacity, [T for T, every in able.lengths.items() if every])
        return split_evenly(0, length, self._max_chunk if able.gives_all_logits and able.continues else 1)

    def open_session(self) -> DecoderSession:
        """See `Engine`."""
        return DecoderSession(self)

    def close(self) -> None:
        """See `Engine`."""
        self.steps.close(self._free)

    def _free(self) -> None:
        del self.step, self.first

    def _signature(self) -> SignatureSpec:
        """What the decoder takes and returns for one token, as far as roles say it."""
        interface = self.step.interface
        tokens = TensorSpec(interface.tokens.name, Role("tokens"), interface.tokens.dtype.numpy(), (1, 1))
        logits = TensorSpec(
            interface.logits.name, Role("logits"), np.dtype(np.float32), (1, 1, self.vocab_size)
        )
        caches = []
        for cache in self.abilities.openers:
            assert cache.past is not None
            role = cache.role
            if role is not None and role.layout is not None and len(cache.past.dims) == 4:
                sizes = dict(zip(role.layout, self.abilities.shapes[cache], strict=True))
                shape = tuple({**sizes, "T": self.capacity}[axis] for axis in role.layout)
                caches.append(TensorSpec(cache.past.name, role, cache.past.dtype.numpy(), shape))
        return SignatureSpec("decode", (tokens, *caches), (logits,))


def _load_graphs(
    file: Path, threads: int, debug: bool, content: bytes | None
) -> tuple[DecoderGraph, DecoderGraph | None]:
    """The graph that reads tokens after others, and another one for the beginning of a text."""
    step = DecoderGraph(file, session_options(threads, debug), content)
    pair = STEP_FILES.get(file.name)
    if pair is None or not (other := file.with_name(pair)).is_file():
        return step, None
    if any(cache.past for cache in step.interface.caches):
        return step, None
    return DecoderGraph(other, session_options(threads, debug)), step


class DecoderSession:
    """A `runtime_py.engines.engine.EngineSession` for a decoder in ONNX as it was exported."""

    def __init__(self, engine: DecoderEngine) -> None:
        """Create the caches of a text.

        Args:
            engine: The engine.
        """
        self.capacity, self.vocab_size, self.plan = engine.capacity, engine.vocab_size, engine.plan
        self._steps, self._able = engine.steps, engine.abilities
        self._plan_logits = engine.plan_logits
        with self._steps.turn():
            self._caches: dict[Cache, TextCache] = {
                cache: create() for cache, create in engine.abilities.openers.items()
            }
            self._step = engine.step.bind(self._caches)
            self._first = self._step
            if engine.first is not None:
                self._first = engine.first.bind(matching(engine.first, self._caches))
        self._read: list[int] = []  # of a decoder without caches

    def prefill(self, tokens: Sequence[int], num_cached: int = 0) -> np.ndarray:
        """See `EngineSession`."""
        tokens = check_prompt(tokens, self, num_cached)
        *chunks, last = self.plan(len(tokens), self.reusable(num_cached))
        for chunk in chunks:
            with self._steps.turn():
                self.run(tokens, chunk)
        with self._steps.turn():
            logits = self._run(tokens, last)[-1]
        return check_logits(logits, last.stop - 1)

    def decode(self, token: int, position: int) -> np.ndarray:
        """See `EngineSession`."""
        token = check_token(token, position, self)
        with self._steps.turn():
            logits = self._feed([token], position)[-1]
        return check_logits(logits, position)

    def run(self, tokens: Sequence[int], chunk: Chunk) -> None:
        """See `EngineSession`."""
        tokens = check_prompt(tokens, self)
        self._run(tokens, chunk)

    def logits(self, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        """See `EngineSession`."""
        tokens = check_prompt(tokens, self, name="the text")
        count = 0
        for chunk in self._plan_logits(len(tokens)):
            with self._steps.turn():
                logits = self._run(tokens, chunk, all_logits=True)
            yield check_logits(logits[count - chunk.stop :], count)
            count = chunk.stop

    def verify(self, tokens: Sequence[int], position: int) -> np.ndarray:
        """See `EngineSession`."""
        lengths = self._able.lengths
        length = None if lengths is None else min(T for T in lengths if len(tokens) <= T)
        with self._steps.turn():
            return self._feed(tokens, position, all_logits=True, length=length)

    def reusable(self, count: int) -> int:
        """See `EngineSession`."""
        return min((cache.reusable(count) for cache in self._caches.values()), default=count)

    def copy_rows(self, source: DecoderSession, start: int, stop: int) -> None:
        """See `EngineSession`."""
        for cache, own in self._caches.items():
            own.copy(source._caches[cache], stop)
        self._read = source._read[:stop]

    def read_rows(self, stop: int) -> CachedRows | None:
        """See `EngineSession`."""
        tensors = {}
        for cache, own in self._caches.items():
            assert cache.past is not None
            if (rows := own.rows(stop)) is None:
                return None
            tensors[cache.past.name] = rows
        return CachedRows(stop, 0, tensors) if tensors else None

    def write_rows(self, rows: CachedRows, start: int, stop: int) -> None:
        """See `EngineSession`."""
        caches = {cache.past.name: own for cache, own in self._caches.items() if cache.past is not None}
        empty = {name: own.rows(0) for name, own in caches.items()}
        by_position = {name: array for name, array in empty.items() if array is not None}
        check_tensors(rows, by_position, dict.fromkeys(caches, rows.stop))
        for name, own in caches.items():
            own.write(rows.tensors[name], stop)

    def close(self) -> None:
        """See `EngineSession`."""
        if self._steps is not CLOSED_SESSION:
            self._steps = CLOSED_SESSION
            del self._step, self._first, self._caches

    def _run(self, tokens: Sequence[int], chunk: Chunk, all_logits: bool = False) -> np.ndarray:
        return self._feed(tokens[chunk.start : chunk.stop], chunk.start, all_logits, chunk.length)

    def _feed(
        self, tokens: Sequence[int], start: int, all_logits: bool = False, length: int | None = None
    ) -> np.ndarray:
        """The logits [rows, V] of a run. Call it in a turn of the engine."""
        lengths = self._able.lengths
        if lengths is not None and length is None:
            length = min(lengths)
        if not self._able.openers:
            self._read = [*self._read[:start], *tokens]
            return self._whole(self._read, all_logits)
        if start and self.reusable(start) != start:
            raise ValueError(f"the caches do not hold the rows before position {start} any more")
        padded = length is not None and length > len(tokens)
        run = Run(tokens, start, all_logits or padded, length)
        return (self._step if start else self._first)(run)

    def _whole(self, tokens: Sequence[int], all_logits: bool) -> np.ndarray:
        length = min(self._able.lengths) if self._able.lengths else None
        return self._first(Run(tokens, 0, all_logits or length is not None, length))
