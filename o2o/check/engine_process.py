"""The process that runs an engine: a crash, a hang or a lack of memory there ends only that process."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import pickle
import select
import signal
import subprocess
import sys
import tempfile
from typing import Any

TIMEOUT = 900.0
"""Seconds for one request, after which the engine counts as hanging."""
PROGRAM = "import sys; sys.path[:] = {path!r}; from o2o.check.engine_worker import serve; serve()"


class EngineFailure(Exception):
    """The engine refused a request, or its process ended. The message is the reason, in one line."""


class EngineProcess:
    """A process that answers the requests of `engine_worker`. It starts at the first one.

    Attributes:
        starts: How often a process was started. Models that an earlier one had loaded are gone.
    """

    def __init__(self) -> None:
        self.starts = 0
        self._keys = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        """Whether the process of the last start still answers."""
        return self._process is not None

    def new_key(self) -> int:
        """Return a number for a model that is loaded next.

        Returns:
            A number that no other model has.
        """
        return next(self._keys)

    def request(self, name: str, *arguments: Any) -> Any:
        """Send a request and wait for its reply.

        Args:
            name: A function of `engine_worker`.
            arguments: Its arguments, without `models`.

        Returns:
            Its result.

        Raises:
            EngineFailure: It failed, its process ended, or there was no reply within `TIMEOUT` seconds.
        """
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump((name, *arguments), process.stdin, protocol=5)
            process.stdin.flush()
            if not select.select([process.stdout], [], [], TIMEOUT)[0]:
                raise EngineFailure(f"it did not answer within {TIMEOUT:.0f} seconds")
            succeeded, result = pickle.load(process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            raise EngineFailure(self._reason_of_end(process)) from None
        except BaseException:  # the reply of an interrupted request must not answer the next one
            self.close()
            raise
        if not succeeded:
            raise EngineFailure(result)
        return result

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):  # a request was still in its buffer
                        pipe.close()
            self._errors.close()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
            self._process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM.format(path=sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
            )
            self.starts += 1
        return self._process

    def _reason_of_end(self, process: subprocess.Popen[bytes]) -> str:
        try:
            code = process.wait(10)
        except subprocess.TimeoutExpired:  # it closed the pipe and goes on
            process.kill()
            code = process.wait()
        self._errors.seek(0)
        lines = [line for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        self.close()
        if code == -signal.SIGKILL:
            return "its process was killed, probably for lack of memory"
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"its process {how}" + (f" ({lines[-1].strip()})" if lines else "")


ENGINE = EngineProcess()
"""One process for all checks of this process."""
atexit.register(ENGINE.close)
