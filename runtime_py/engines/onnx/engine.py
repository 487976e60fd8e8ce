"""ONNX Runtime engine: one ONNX graph for prompts of any length and for decode, on the CPU.

Tokens, position, logits and KV caches are numpy arrays, bound once to the inputs and outputs of the graph. A
cache is bound as input and as output, so new rows are written in place and nothing is copied from run to run.
A decode step writes two numbers and runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from o2o.cli.silence_stderr import silenced_stderr
from o2o.contract import METADATA_NAME, NUM_LOGITS, loads
from o2o.errors import ModelError
from runtime_py.engines.cached_rows import CachedRows, by_position, check_fit, copy_in, view_rows
from runtime_py.engines.finite_logits import check_logits
from runtime_py.engines.model_file import ModelFile
from runtime_py.engines.onnx.draft_verifiers import cache_after
from runtime_py.engines.onnx.inference_session import (
    model_error_from,
    open_inference_session,
    session_options,
)
from runtime_py.engines.onnx.lowered_file import WEIGHT_DTYPE
from runtime_py.engines.onnx.num_logits import select_logits
from runtime_py.engines.onnx.prepare import prepare
from runtime_py.engines.onnx.run_sizes import MAX_CHUNK, MAX_LOGITS, VERIFY_LENGTHS
from runtime_py.engines.options import EngineOptions
from runtime_py.engines.prefill_plan import Chunk, split_evenly
from runtime_py.engines.step_lock import CLOSED_SESSION, StepLock
from runtime_py.engines.token_ids import check_prompt, check_token
from runtime_py.engines.window_rows import WindowRows
from runtime_py.model.contract import Contract, Slot
from runtime_py.model.onnx_metadata import read_metadata
from runtime_py.model.weight_dtype import onnx_weight_dtype

if TYPE_CHECKING:
    from runtime_py.engines.onnx.decoder.engine import DecoderEngine

with silenced_stderr():
    import onnxruntime


def load(model: ModelFile, options: EngineOptions) -> OnnxEngine | DecoderEngine:
    """Load a model on ONNX Runtime.

    Args:
        model: A Circle or ONNX file.
        options: All but `buckets` are used.

    Returns:
        The engine: `OnnxEngine` for one graph of `o2o.lower.onnx`, `DecoderEngine` for any other decoder.

    Raises:
        ModelError: ONNX Runtime cannot run the model.
        OSError: The file cannot be read.
    """
    threads = options.threads or 1
    try:
        if model.path.suffix == ".onnx" and not _is_one_graph(model.path):
            from runtime_py.engines.onnx.decoder.engine import DecoderEngine

            selects = options.all_logits or options.speculate
            return DecoderEngine(
                model.path,
                threads=threads,
                debug=options.debug,
                content=select_logits(model.path) if selects else None,
                speculate=options.speculate,
                log=options.log,
            )
    except ModelError as error:
        raise _at(model.path, error) from error
    with prepare(model, options) as prepared:
        try:
            return OnnxEngine(
                prepared.content or prepared.file,
                threads=threads,
                debug=options.debug,
                origin=prepared.file,
                speculate=options.speculate,
                verifier=prepared.verifier,
                rounded_drafts=options.rounded_drafts,
            )
        except ModelError as error:
            raise _at(model.path, error) from error


def _is_one_graph(file: Path) -> bool:
    """Whether a file has the contract of `o2o.lower.onnx`: caches of fixed capacity, and one position."""
    text = read_metadata(file).get(METADATA_NAME)
    if text is None:
        return False
    try:
        parsed, _ = Contract.parse_dynamic(text)
    except ModelError:
        return False
    entries = loads(text)["signatures"]["decode"]["inputs"]
    fixed = (entry["shape"] for entry in entries if entry.get("role") != "tokens")
    is_fixed = all(isinstance(size, int) for shape in fixed for size in shape)
    return is_fixed and {tensor.kind for tensor in parsed.decode.inputs} <= _KINDS


OPENING_PER_TOKEN = 0.05
"""What each token of a graph that verifies drafts adds to the time that the model took to open."""
_KINDS = {"tokens", "position", "window_row", "num_logits", "key_cache", "value_cache"}
"""The inputs of a graph of `o2o.lower.onnx`."""


def _at(path: Path, error: ModelError) -> ModelError:
    text = str(error)
    return ModelError(text if text.startswith(str(path)) else f"{path}: {text}")


class OnnxEngine:
    """A `runtime_py.engines.engine.Engine` on ONNX Runtime."""

    def __init__(
        self,
        model: bytes | Path,
        *,
        threads: int = 1,
        debug: bool = False,
        max_chunk: int = MAX_CHUNK,
        origin: Path | None = None,
        speculate: bool = True,
        verifier: Callable[[int], bytes | Path] | None = None,
        rounded_drafts: bool = False,
    ) -> None:
        """Load an ONNX model whose `o2o.contract` metadata describes one graph for any number of tokens.

        It takes tokens [1, T], the position [1] of the first token, and the KV caches. It returns the KV
        caches and logits: [1, 1, V] of the last token, or [1, T, V] of all. With an input `num_logits`, they
        are those of this number of last tokens.

        Args:
            model: The file's bytes, or the path of the file, with external data in the same folder.
            threads: Number of threads.
            debug: Whether ONNX Runtime's log goes to stderr.
            max_chunk: Maximum number of tokens per run.
            origin: The file that the bytes were made from, whose folder has the external data.
            speculate: See `EngineOptions`.
            verifier: Returns the graph that verifies drafts of T tokens, for each T of `VERIFY_LENGTHS`
                (`runtime_py.engines.onnx.draft_verifiers`). None to verify with `model`, which rounds
                otherwise than decode steps.
            rounded_drafts: See `EngineOptions`.

        Raises:
            ModelError: The model is of another form, or ONNX Runtime refuses it.
        """
        self._file = origin if isinstance(model, bytes) else model
        self._speculates, self._verifier, self._rounded_drafts = speculate, verifier, rounded_drafts
        self._verifying: dict[int, onnxruntime.InferenceSession] = {}
        self._threads, self._debug, self._folder = threads, debug, origin and origin.parent
        self.steps = StepLock(self)
        begin = time.perf_counter()
        with silenced_stderr(not debug):
            self._model = open_inference_session(model, session_options(threads, debug), self._folder)
            self._seconds = time.perf_counter() - begin
            self._metadata: dict[str, str] = self._model.get_modelmeta().custom_metadata_map
            self.contract, self.gives_all_logits = Contract.parse_dynamic(self._metadata.get(METADATA_NAME))
            """See `Engine`."""
            selects = self.contract.decode.input(NUM_LOGITS) is not None
            self._every_logit = self.gives_all_logits and not selects
            self.capacity = self.contract.capacity
            window = self.contract.decode.window
            self._max_chunk = min(max_chunk, window.max_tokens) if window is not None else max_chunk
            self.vocab_size = self.contract.vocab_size
            self._check_contract()
            session = self.open_session()
            session.decode(0, 0)  # warm up: one-time work and its log lines happen here
            session.close()

    @cached_property
    def weight_dtype(self) -> str:
        """See `Engine`. Reads an ONNX file that was not lowered by this package when it is first used."""
        if stored := self._metadata.get(WEIGHT_DTYPE):
            return stored
        return onnx_weight_dtype(self._file) if self._file is not None else ""

    def plan(self, length: int, num_cached: int = 0) -> list[Chunk]:
        """See `EngineSession.plan`. Runs of `max_chunk` tokens, then one of the rest, without padding."""
        return split_evenly(num_cached, length, self._max_chunk)

    def verify_lengths(self, position: int) -> list[int]:
        """See `Engine`. None where bits depend on the rows of a window cache, which drafts would change."""
        if not self.gives_all_logits or not self._speculates:
            return []
        if not self._rounded_drafts and self.contract.decode.window is not None:
            return []
        most = min(self._max_chunk, self.capacity - position)
        return [length for length in VERIFY_LENGTHS if length <= most]

    def verify_setup(self, length: int) -> float:
        """See `Engine`. A graph of T tokens has more operators than the model, so it opens more slowly."""
        if self._verifier is None or length in self._verifying:
            return 0.0
        return self._seconds * (1 + OPENING_PER_TOKEN * length)

    def plan_logits(self, length: int) -> list[Chunk]:
        """Return the runs that give the logits of each token of a text.

        Args:
            length: P, the number of tokens.

        Returns:
            The runs in order. The logits of a run have at most `MAX_LOGITS` bytes.
        """
        fitting = max(1, MAX_LOGITS // (4 * self.vocab_size))
        return split_evenly(0, length, min(self._max_chunk, fitting) if self.gives_all_logits else 1)

    def open_session(self) -> OnnxSession:
        """See `Engine`."""
        return OnnxSession(self)

    def close(self) -> None:
        """See `Engine`."""
        self.steps.close(self._free)

    def _free(self) -> None:
        del self._model, self._verifying

    def bind(self, caches: Mapping[Slot, np.ndarray], length: int, all_logits: bool = False) -> _BoundGraph:
        """Bind the graph to the KV caches of a session. Call it in a turn of `steps`.

        Args:
            caches: The KV caches.
            length: T, the number of tokens of a run.
            all_logits: Whether the logits of each token are needed, and not only those of the last.

        Returns:
            The bound graph.
        """
        rows = length if self._every_logit or all_logits else 1
        return _BoundGraph(self._model, self.contract, caches, length, rows)

    def bind_verifier(self, caches: Mapping[Slot, np.ndarray], length: int) -> _BoundGraph:
        """Bind the graph that verifies drafts. Call it in a turn of `steps`. Its first use opens the graph.

        Args:
            caches: The KV caches.
            length: T, one of `VERIFY_LENGTHS`.

        Returns:
            The bound graph, which returns the logits of each token.
        """
        if self._verifier is not None and length not in self._verifying:
            try:
                self._verifying[length] = self._open_verifier(self._verifier(length))
            except (ModelError, OSError):  # a deleted file: the model itself verifies, if it is exact
                self._verifier = None
        if length not in self._verifying:
            return self.bind(caches, length, all_logits=True)
        return _BoundGraph(self._verifying[length], self.contract, caches, length, length)

    def _open_verifier(self, graph: bytes | Path) -> onnxruntime.InferenceSession:
        options = session_options(self._threads, self._debug)
        # Planning which values share memory takes 3 times as long as all else. Few tokens need little memory.
        options.enable_mem_reuse = False
        # Threads that wait without sleeping would slow the decode steps of the other session.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        with silenced_stderr(not self._debug):
            return open_inference_session(graph, options, self._folder)

    def _check_contract(self) -> None:
        """The graph must have the inputs and outputs of its contract, and return its KV caches."""
        decode = self.contract.decode
        for direction, values, tensors in (
            ("inputs", self._model.get_inputs(), decode.inputs),
            ("outputs", self._model.get_outputs(), decode.outputs),
        ):
            names = sorted(value.name for value in values)
            if names != sorted(tensor.name for tensor in tensors):
                raise ModelError(
                    f"the model's {direction} are {', '.join(names)}, which differ from its o2o.contract"
                )
        for slot, cache in decode.caches.items():
            rows = decode.cache_outputs[slot]
            if (rows.shape, rows.layout) != (cache.shape, cache.layout):
                raise ModelError(
                    f"the model does not return the KV cache {cache.name!r} in its own shape: lower it again"
                )


class OnnxSession:
    """A `runtime_py.engines.engine.EngineSession` on ONNX Runtime."""

    def __init__(self, engine: OnnxEngine) -> None:
        """Allocate the KV caches and the buffers of a decode step.

        Args:
            engine: The engine.
        """
        self.capacity, self.vocab_size, self.plan = engine.capacity, engine.vocab_size, engine.plan
        self._steps, self._bind, self._plan_logits = engine.steps, engine.bind, engine.plan_logits
        self._contract = engine.contract
        self._bind_verifier, self._verify_lengths = engine.bind_verifier, engine.verify_lengths
        with self._steps.turn():
            # Masked rows are still multiplied, by 0, so they must be finite.
            self.kv_caches: dict[Slot, np.ndarray] = {
                slot: np.zeros(cache.shape, cache.dtype)
                for slot, cache in engine.contract.decode.caches.items()
            }
            self._step = self._bind(self.kv_caches, 1)
        self._verifiers: dict[int, _BoundGraph] = {}
        size = engine.contract.decode.window
        self._windows = WindowRows(size) if size is not None else None

    def prefill(self, tokens: Sequence[int], num_cached: int = 0) -> np.ndarray:
        """See `EngineSession`."""
        tokens = check_prompt(tokens, self, num_cached)
        *chunks, last = self.plan(len(tokens), self.reusable(num_cached))
        for chunk in chunks:
            with self._steps.turn():
                self.run(tokens, chunk)
        with self._steps.turn():
            logits = self._run(tokens, last).logits[-1].copy()
        return check_logits(logits, last.stop - 1)

    def decode(self, token: int, position: int) -> np.ndarray:
        """See `EngineSession`."""
        token = check_token(token, position, self)
        with self._steps.turn():
            self._feed(self._step, token, position, 1)
            logits = self._step.logits[-1].copy()
        return check_logits(logits, position)

    def run(self, tokens: Sequence[int], chunk: Chunk) -> None:
        """See `EngineSession`."""
        tokens = check_prompt(tokens, self)
        self._run(tokens, chunk)

    def logits(self, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        """See `EngineSession`."""
        tokens = check_prompt(tokens, self, name="the text")
        for chunk in self._plan_logits(len(tokens)):
            with self._steps.turn():
                logits = self._run(tokens, chunk, all_logits=True).logits.copy()
            yield check_logits(logits, chunk.start)

    def verify(self, tokens: Sequence[int], position: int) -> np.ndarray:
        """See `EngineSession`."""
        count = len(tokens)
        length = next(T for T in self._verify_lengths(position) if count <= T)
        with self._steps.turn():
            if length not in self._verifiers:
                self._verifiers[length] = self._bind_verifier(self.kv_caches, length)
            run = self._verifiers[length]
            self._feed(run, [*tokens, *[0] * (length - count)], position, length)
            return run.logits[:count].copy()

    def reusable(self, count: int) -> int:
        """See `EngineSession`."""
        return count if self._windows is None or self._windows.holds(count) else 0

    def copy_rows(self, source: OnnxSession, start: int, stop: int) -> None:
        """See `EngineSession`."""
        if self._windows is not None and source._windows is not None:
            self._windows.copy(source._windows)
        for slot, cache in self._contract.decode.caches.items():
            axis = cache.layout.index("T")
            copied = slice(start, stop) if cache.role.capacity is None else slice(None)
            rows = (slice(None),) * axis + (copied,)
            self.kv_caches[slot][rows] = source.kv_caches[slot][rows]

    def read_rows(self, stop: int) -> CachedRows:
        """See `EngineSession`."""
        return self.view_rows(stop).copied()

    def view_rows(self, stop: int) -> CachedRows:
        """See `runtime_py.engines.phased_engine.PhaseSession`."""
        return view_rows(*self._by_position(), self._windows, stop)

    def write_rows(self, rows: CachedRows, start: int, stop: int) -> None:
        """See `EngineSession`."""
        full, windows = self._by_position()
        check_fit(rows, full, windows, stop)
        copy_in(rows, full, windows, self._windows, start, stop)

    def _by_position(self) -> tuple[dict[Slot, np.ndarray], dict[Slot, np.ndarray]]:
        """Views of the full caches, and of the window caches."""
        full: dict[Slot, np.ndarray] = {}
        windows: dict[Slot, np.ndarray] = {}
        for slot, cache in self._contract.decode.caches.items():
            views = full if cache.role.capacity is None else windows
            views[slot] = by_position(self.kv_caches[slot], cache.layout)
        return full, windows

    def close(self) -> None:
        """See `EngineSession`."""
        if self._steps is not CLOSED_SESSION:
            self._steps = CLOSED_SESSION
            del self._step, self._verifiers, self.kv_caches, self._bind, self._bind_verifier
            del self._verify_lengths

    def _run(self, tokens: Sequence[int], chunk: Chunk, all_logits: bool = False) -> _BoundGraph:
        run = self._bind(self.kv_caches, chunk.length, all_logits)
        self._feed(run, tokens[chunk.start : chunk.stop], chunk.start, chunk.length)
        return run

    def _feed(self, run: _BoundGraph, tokens: Sequence[int] | int, position: int, length: int) -> None:
        """Run the graph on T tokens, after the rows of window caches were moved if they must be."""
        if self._windows is None:
            run(tokens, position, position)
            return
        caches = [
            (self.kv_caches[slot], cache.layout.index("T"))
            for slot, cache in self._contract.decode.caches.items()
            if cache.role.capacity is not None
        ]
        run(tokens, position, self._windows.row_of(position, length, caches))


class _BoundGraph:
    """The graph's inputs and outputs, bound to arrays for T tokens a run."""

    def __init__(
        self,
        model: onnxruntime.InferenceSession,
        contract: Contract,
        caches: Mapping[Slot, np.ndarray],
        length: int,
        rows: int,
    ) -> None:
        """Bind arrays for T = `length` tokens and logits [rows, V]."""
        self._model = model
        self._binding = model.io_binding()
        decode = contract.decode
        tokens, position, logits = decode.input("tokens"), decode.input("position"), decode.output("logits")
        assert tokens and position and logits  # noqa: PT018
        self._tokens = np.zeros((1, length), tokens.dtype)
        self._position = np.zeros(1, position.dtype)
        num_logits = decode.input(NUM_LOGITS)
        self._num_logits = np.full(1, rows, num_logits.dtype if num_logits is not None else np.int64)
        row = decode.input("window_row")
        self._window_row = np.zeros(1, row.dtype if row is not None else position.dtype)
        self._logits = np.zeros((1, rows, logits.shape[-1]), logits.dtype)
        arrays = {
            "tokens": self._tokens,
            "position": self._position,
            "window_row": self._window_row,
            "logits": self._logits,
            NUM_LOGITS: self._num_logits,
        }
        for tensors, bind in (
            (decode.inputs, self._binding.bind_input),
            (decode.outputs, self._binding.bind_output),
        ):
            for tensor in tensors:
                array = caches[tensor.slot] if tensor.slot in caches else arrays[tensor.kind]
                bind(tensor.name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        # A graph that verifies drafts also returns the caches between two tokens.
        names = {output.name for output in model.get_outputs()}
        for slot, tensor in decode.cache_outputs.items():
            cache = caches[slot]
            place = cache.dtype.type, cache.shape, cache.ctypes.data
            for token in range(length - 1):
                if (name := cache_after(tensor.name, token)) in names:
                    self._binding.bind_output(name, "cpu", 0, *place)

    def __call__(self, tokens: Sequence[int] | int, position: int, window_row: int) -> None:
        """Feed T ids, the first at `position`, in row `window_row` of window caches."""
        self._tokens[0] = tokens
        self._position[0], self._window_row[0] = position, window_row
        try:
            self._model.run_with_iobinding(self._binding)
        except Exception as error:  # its exceptions have no common base class
            raise model_error_from(error) from error

    @property
    def logits(self) -> np.ndarray:
        """The logits of the last run, [rows, V] float32. The next run overwrites them."""
        return self._logits[0].astype(np.float32, copy=False)
