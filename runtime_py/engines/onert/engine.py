"""onert engine: Circle models of one decode step, on onert's `cpu` backend.

onert reads its inputs in place. So KV caches are numpy arrays that are set as inputs once. The rows that a
step returns are written into them; nothing else is copied. There is no prefill: prompts are read token by
token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from o2o.errors import ModelError
from runtime_py.engines.cached_rows import CachedRows, by_position, check_fit, copy_in, view_rows
from runtime_py.engines.finite_logits import check_logits
from runtime_py.engines.model_file import ModelFile
from runtime_py.engines.onert.nnfw import ERRORS, check_in_child, open_nnfw_session
from runtime_py.engines.onert.prepare import prepare
from runtime_py.engines.options import EngineOptions
from runtime_py.engines.prefill_plan import Chunk, plan_chunks
from runtime_py.engines.step_lock import CLOSED_SESSION, StepLock
from runtime_py.engines.token_ids import check_prompt, check_token
from runtime_py.engines.window_rows import WindowRows
from runtime_py.model.contract import Contract, SignatureSpec, Slot


def load(model: ModelFile, options: EngineOptions) -> OnertEngine:
    """Load a model on onert.

    Args:
        model: A Circle file.
        options: `threads` and `debug` are used.

    Returns:
        The engine.

    Raises:
        ModelError: onert cannot run the model.
        OSError: The file cannot be read.
    """
    with prepare(model, options) as prepared:
        return OnertEngine(
            prepared.file,
            prepared.contract,
            weight_dtype=model.weight_dtype,
            threads=options.threads or 1,
            debug=options.debug,
        )


class OnertEngine:
    """A `runtime_py.engines.engine.Engine` on onert."""

    def __init__(
        self,
        model: Path,
        contract: Contract,
        *,
        weight_dtype: str = "",
        threads: int = 1,
        debug: bool = False,
    ) -> None:
        """Load a Circle file.

        Args:
            model: A file as `runtime_py.engines.onert.prepare` makes it.
            contract: Its decode signature.
            weight_dtype: The dtype of its weights, for display.
            threads: Number of threads, which onert uses for few operators.
            debug: Whether onert's log goes to stderr.

        Raises:
            ModelError: onert refuses the file.
        """
        self.contract = contract
        self.weight_dtype = weight_dtype
        self.capacity = contract.capacity
        self.vocab_size = contract.vocab_size
        self.steps = StepLock(self)
        _check_rows(contract.decode)
        if not debug:
            check_in_child(model)
        self._model = open_nnfw_session(model, threads, debug)
        self._bound: OnertSession | None = None  # the session whose arrays are onert's inputs
        session = self.open_session()
        session.decode(0, 0)  # warm up: one-time work happens here
        session.close()

    def plan(self, length: int, num_cached: int = 0) -> list[Chunk]:
        """See `EngineSession.plan`. One token a run."""
        return plan_chunks(length, self.capacity, [1], num_cached=num_cached)

    def verify_lengths(self, position: int) -> tuple[int, ...]:
        """See `Engine`. onert runs one token at a time."""
        return ()

    def verify_setup(self, length: int) -> float:
        """See `Engine`."""
        return 0.0

    @property
    def gives_all_logits(self) -> bool:
        """See `Engine`. There is no prefill."""
        return False

    def open_session(self) -> OnertSession:
        """See `Engine`."""
        return OnertSession(self)

    def close(self) -> None:
        """See `Engine`."""
        self.steps.close(self._free)

    def _free(self) -> None:
        del self._model, self._bound

    def run(self, session: OnertSession) -> None:
        """Run the model on the arrays of a session. Call it in a turn of `steps`.

        Args:
            session: A session of this engine. Its arrays become onert's inputs if they are not yet.

        Raises:
            ModelError: onert cannot run the model.
        """
        if self._bound is not session:
            for index, array in enumerate(session.inputs):
                self._model.set_input(index, array)
            self._bound = session
        try:
            self._model.run()
        except ERRORS as error:
            raise ModelError(f"onert cannot run the model: {error}") from error

    def output(self, index: int) -> np.ndarray:
        """Return an output of the last run.

        Args:
            index: Its number in the decode signature.

        Returns:
            An array that the next run overwrites.
        """
        return self._model.get_output(index)


class OnertSession:
    """A `runtime_py.engines.engine.EngineSession` on onert."""

    def __init__(self, engine: OnertEngine) -> None:
        """Allocate the KV caches and the other inputs.

        Args:
            engine: The engine, which outlives the session.
        """
        self.capacity, self.vocab_size, self.plan = engine.capacity, engine.vocab_size, engine.plan
        self._engine = engine
        self._steps = engine.steps
        decode = engine.contract.decode
        self.inputs = [np.zeros(tensor.shape, tensor.dtype) for tensor in decode.inputs]
        """The arrays that onert reads, in the order of the decode signature."""
        by_role = {tensor.kind: array for tensor, array in zip(decode.inputs, self.inputs, strict=True)}
        self._tokens, self._position = by_role["tokens"], by_role["position"]
        self._logits = next(index for index, tensor in enumerate(decode.outputs) if tensor.kind == "logits")
        self.kv_caches: dict[Slot, np.ndarray] = {
            tensor.slot: by_position(array, tensor.layout)
            for tensor, array in zip(decode.inputs, self.inputs, strict=True)
            if tensor.slot in decode.caches
        }
        """Views of the KV caches by position: [S, K, H]."""
        self._windows = WindowRows(decode.window) if decode.window is not None else None
        self._window_row = by_role.get("window_row")
        self._window_slots = {slot for slot, of in decode.caches.items() if of.role.capacity is not None}
        self._rows = [
            (index, tensor.heads, tensor.slot)
            for index, tensor in enumerate(decode.outputs)
            if tensor.slot in decode.cache_outputs
        ]

    def prefill(self, tokens: Sequence[int], num_cached: int = 0) -> np.ndarray:
        """See `EngineSession`."""
        tokens = check_prompt(tokens, self, num_cached)
        *chunks, last = self.plan(len(tokens), self.reusable(num_cached))
        for chunk in chunks:
            with self._steps.turn():
                self.run(tokens, chunk)
        return self.decode(tokens[last.start], last.start)

    def decode(self, token: int, position: int) -> np.ndarray:
        """See `EngineSession`."""
        token = check_token(token, position, self)
        with self._steps.turn():
            self._step(token, position)
            logits = self._read_logits()
        return check_logits(logits, position)

    def run(self, tokens: Sequence[int], chunk: Chunk) -> None:
        """See `EngineSession`."""
        tokens = check_prompt(tokens, self)
        self._step(tokens[chunk.start], chunk.start)

    def logits(self, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        """See `EngineSession`."""
        for position, token in enumerate(check_prompt(tokens, self, name="the text")):
            yield self.decode(token, position)[np.newaxis]

    def verify(self, tokens: Sequence[int], position: int) -> np.ndarray:
        """See `EngineSession`. There are no runs of several tokens: `Engine.verify_lengths` is empty."""
        raise NotImplementedError

    def reusable(self, count: int) -> int:
        """See `EngineSession`."""
        return count if self._windows is None or self._windows.holds(count) else 0

    def copy_rows(self, source: OnertSession, start: int, stop: int) -> None:
        """See `EngineSession`."""
        if self._windows is not None and source._windows is not None:
            self._windows.copy(source._windows)
        for slot, cache in self.kv_caches.items():
            copied = slice(None) if slot in self._window_slots else slice(start, stop)
            cache[copied] = source.kv_caches[slot][copied]

    def read_rows(self, stop: int) -> CachedRows:
        """See `EngineSession`."""
        return view_rows(*self._by_kind(), self._windows, stop).copied()

    def write_rows(self, rows: CachedRows, start: int, stop: int) -> None:
        """See `EngineSession`."""
        full, windows = self._by_kind()
        check_fit(rows, full, windows, stop)
        copy_in(rows, full, windows, self._windows, start, stop)

    def _by_kind(self) -> tuple[dict[Slot, np.ndarray], dict[Slot, np.ndarray]]:
        """The full caches, and the window caches."""
        windows = {slot: cache for slot, cache in self.kv_caches.items() if slot in self._window_slots}
        return {slot: cache for slot, cache in self.kv_caches.items() if slot not in windows}, windows

    def close(self) -> None:
        """See `EngineSession`."""
        if self._steps is not CLOSED_SESSION:
            self._steps = CLOSED_SESSION
            # onert has its own reference to the arrays until another session runs
            del self._engine, self.inputs, self.kv_caches, self._tokens, self._position, self._window_row

    def _step(self, token: int, position: int) -> None:
        self._tokens[...] = token
        self._position[...] = position
        window_row = position
        if self._windows is not None:
            caches = [(self.kv_caches[slot], 0) for slot in self._window_slots]
            window_row = self._windows.row_of(position, 1, caches)
        if self._window_row is not None:
            self._window_row[...] = window_row
        self._engine.run(self)
        for index, heads, slot in self._rows:
            row = window_row if slot in self._window_slots else position
            self.kv_caches[slot][row] = self._engine.output(index).reshape(heads)

    def _read_logits(self) -> np.ndarray:
        """The logits of the last step, [V] float32."""
        return self._engine.output(self._logits).reshape(-1).astype(np.float32)


def _check_rows(decode: SignatureSpec) -> None:
    if unmatched := decode.cache_outputs.keys() ^ decode.caches.keys():
        kind, layer = min(unmatched)
        raise ModelError(f"layer {layer}: the {kind} cache or its new row is missing")
    for slot, row in decode.cache_outputs.items():
        one_by_head = row.num_rows == 1 and row.layout.index("N") < row.layout.index("H")
        if not one_by_head or row.heads != decode.caches[slot].heads:
            raise ModelError(
                f"{decode.name} returns {list(row.shape)} as {row.name!r}, not one new row: run "
                "legalize.onert.py on the model"
            )
