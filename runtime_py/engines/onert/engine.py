"""onert: Circle models of one decode step, on its `cpu` backend.

onert reads its inputs where they lie. So caches are numpy arrays that it was told of once, and the rows that
a step gives out are written into them; nothing else is copied. It has no prefill: prompts are read a token at
a time.

It ends the process for files that it does not like. So each is tried in another process first, which costs
some tenths of a second:

    python -m runtime_py.engines.onert.engine decode.circle
"""

from __future__ import annotations

if __name__ == "__main__":
    from o2o.cli.interrupt import exit_on_interrupt

    exit_on_interrupt(None)

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from o2o.errors import ModelError
from runtime_py.engines.onert.prepare import legalized
from runtime_py.engines.prefill_plan import Chunk, chunks
from runtime_py.model.contract import Contract, Signature, Tensor

_THREADS = "NUM_THREADS"  # the variable that onert looks at when it loads a model


class OnertEngine:
    """A `runtime_py.engines.Engine` on onert."""

    def __init__(self, model: Path, contract: Contract, *, threads: int = 1, debug: bool = False) -> None:
        """Load the Circle file at `model`, as `runtime_py.engines.onert.prepare` makes them, described by
        `contract`.

        threads: how many onert may use, which it does for little. debug: let it write its log to stderr.
        Raises ModelError when onert is not there, or refuses the file.
        """
        self.capacity = contract.capacity
        self.vocab_size = contract.vocab_size
        decode = contract.decode
        _check_rows(decode)
        _onert()
        if not debug:
            _try(model)
        self._session = _session(model, threads, debug)
        self._inputs = [np.zeros(tensor.shape, tensor.dtype) for tensor in decode.inputs]
        for index, array in enumerate(self._inputs):
            self._session.set_input(index, array)
        by_role = {tensor.kind: array for tensor, array in zip(decode.inputs, self._inputs, strict=True)}
        self._tokens, self._position = by_role["tokens"], by_role["position"]
        self._logits = _index(decode, "logits")
        caches = {
            tensor.slot: _by_row(tensor, array)
            for tensor, array in zip(decode.inputs, self._inputs, strict=True)
            if tensor.slot in decode.caches
        }
        self._rows = [
            (index, tensor.heads, caches[tensor.slot])
            for index, tensor in enumerate(decode.outputs)
            if tensor.slot in decode.rows
        ]
        self.decode(0, 0)  # what is done once is done, and said, now

    @classmethod
    def load(cls, file: Path, *, threads: int = 1, debug: bool = False) -> OnertEngine:
        """The model in `file`, legalized on the way where that was not done. Raises ModelError, OSError."""
        _onert()  # before anything is written
        with legalized(file) as (model, contract):
            return cls(model, contract, threads=threads, debug=debug)

    def plan(self, prompt: int, kept: int = 0) -> list[Chunk]:
        """See `Engine`: a token at a time."""
        return chunks(prompt, self.capacity, [1], kept=kept)

    def prefill(self, tokens: Sequence[int], kept: int = 0) -> np.ndarray:
        """See `Engine`."""
        for chunk in self.plan(len(tokens), kept):
            self._step(tokens[chunk.start], chunk.start)
        return self._read_logits()

    def decode(self, token: int, position: int) -> np.ndarray:
        """See `Engine`."""
        self._step(token, position)
        return self._read_logits()

    def close(self) -> None:
        """See `Engine`."""
        del self._session

    def _step(self, token: int, position: int) -> None:
        self._tokens[...] = token
        self._position[...] = position
        self._session.run()
        for index, heads, cache in self._rows:
            cache[position] = self._session.get_output(index).reshape(heads)

    def _read_logits(self) -> np.ndarray:
        """Those of the last step, [V] float32."""
        logits: np.ndarray = self._session.get_output(self._logits).reshape(-1)
        return logits.astype(np.float32)


def _by_row(cache: Tensor, array: np.ndarray) -> np.ndarray:
    """A view of `array`, a cache as told, by position: [S, K, H]."""
    return array.transpose([cache.layout.index(axis) for axis in "BTNH"])[0]


def _check_rows(decode: Signature) -> None:
    if lost := decode.rows.keys() ^ decode.caches.keys():
        kind, layer = min(lost)
        raise ModelError(f"layer {layer}: the {kind} cache and new rows for it are not both there")
    for slot, row in decode.rows.items():
        one_by_head = row.rows == 1 and row.layout.index("N") < row.layout.index("H")
        if not one_by_head or row.heads != decode.caches[slot].heads:
            raise ModelError(
                f"{decode.name} gives {list(row.shape)} as {row.name!r}, not one new row: take it through "
                "legalize.onert.py"
            )


def _index(decode: Signature, role: str) -> int:
    return next(index for index, tensor in enumerate(decode.outputs) if tensor.kind == role)


def _onert() -> Any:
    """onert's own module. Raises ModelError where it is not installed."""
    try:
        from onert.native import libnnfw_api_pybind
    except ImportError as error:
        raise ModelError(f"onert is not there ({error}): pip install onert==0.1.0") from error
    return libnnfw_api_pybind


def _try(model: Path) -> None:
    """Raises ModelError for a file on which onert ends a process, or that it does not take."""
    command = [sys.executable, "-m", __spec__.name, str(model)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode < 0:
        raise ModelError(
            f"onert crashes on the model ({signal.Signals(-done.returncode).name}): legalize.onert.py makes "
            "what it runs; please report one that it made"
        )
    if done.returncode:
        raise ModelError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])


def _main(model: Path) -> None:
    try:
        session = _session(model, 1)
    except ModelError as error:
        sys.exit(str(error))
    inputs = [session.input_tensorinfo(index) for index in range(session.input_size())]
    arrays = [np.zeros(info.dims[: info.rank], info.dtype) for info in inputs]
    for index, array in enumerate(arrays):
        session.set_input(index, array)
    session.run()


def _session(model: Path, threads: int, debug: bool = False) -> Any:
    """onert's session on the file at `model`. Raises ModelError with what onert says of it."""
    onert = _onert()
    said: list[str] = []
    before = os.environ.get(_THREADS)
    os.environ[_THREADS] = str(threads)
    try:
        with _into(said):
            session = onert.infer.nnfw_session(str(model), "cpu")
            session.set_prepare_config(onert.prepare_config.ENABLE_INTERNAL_OUTPUT_ALLOC)
            session.prepare()
    except (onert.exception.OnertError, ValueError, RuntimeError) as error:
        raise ModelError(f"onert cannot take the model: {said[-1] if said else error}") from error
    finally:
        if debug:
            print(*said, sep="\n", end="", file=sys.stderr)
        if before is None:
            del os.environ[_THREADS]
        else:
            os.environ[_THREADS] = before
    return session


@contextlib.contextmanager
def _into(lines: list[str]) -> Iterator[None]:
    """Put the lines that are written to stderr (the file descriptor) inside the block into `lines`."""
    if sys.stderr is not None:
        sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # stderr is closed
        yield
        return
    try:
        with tempfile.TemporaryFile() as written:
            os.dup2(written.fileno(), 2)
            try:
                yield
            finally:
                os.dup2(kept, 2)
                written.seek(0)
                lines += written.read().decode(errors="replace").split("\n")[:-1]
    finally:
        os.close(kept)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
