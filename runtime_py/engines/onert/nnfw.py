"""onert's nnfw session: loading of Circle files on its `cpu` backend.

onert aborts its process on files that it does not support. So each file is tried in a child process first,
which takes some tenths of a second:

    python -m runtime_py.engines.onert.nnfw decode.circle
"""

from __future__ import annotations

if __name__ == "__main__":
    from o2o.cli.interrupt import exit_on_interrupt

    exit_on_interrupt(None)

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onert.native import libnnfw_api_pybind as nnfw

from o2o.cli.silence_stderr import captured_stderr
from o2o.errors import ModelError
from runtime_py.child_process import ChildFailed, exit_with, run_module

ERRORS = (nnfw.exception.OnertError, ValueError, RuntimeError)
"""The errors that onert raises."""
_THREADS = "NUM_THREADS"  # the variable that onert reads when it loads a model


def check_in_child(model: Path) -> None:
    """Load and run a Circle file in a child process.

    Args:
        model: A Circle file.

    Raises:
        ModelError: onert refuses the file, or crashes on it.
    """
    try:
        run_module(__spec__.name, model)
    except ChildFailed as error:
        if error.returncode >= 0:
            raise ModelError(str(error)) from error
        raise ModelError(
            f"onert crashes on the model ({signal.Signals(-error.returncode).name}): make it with "
            "legalize.onert.py; please report the crash if you did"
        ) from error


def open_nnfw_session(model: Path, threads: int, debug: bool = False) -> Any:
    """Load a Circle file.

    Args:
        model: A Circle file.
        threads: Number of threads.
        debug: Whether onert's log goes to stderr.

    Returns:
        onert's session, whose inputs are to be set.

    Raises:
        ModelError: onert refuses the file; the message is the last line of its log.
    """
    log: list[str] = []
    try:
        with captured_stderr(log), _environment_variable(_THREADS, str(threads)):
            session = nnfw.infer.nnfw_session(str(model), "cpu")
            session.set_prepare_config(nnfw.prepare_config.ENABLE_INTERNAL_OUTPUT_ALLOC)
            session.prepare()
    except ERRORS as error:
        raise ModelError(f"onert refuses the model: {log[-1] if log else error}") from error
    finally:
        if debug:
            print(*log, sep="\n", end="", file=sys.stderr)
    return session


@contextlib.contextmanager
def _environment_variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable of this process inside the block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _run_once(model: Path) -> None:
    session = open_nnfw_session(model, threads=1)
    infos = [session.input_tensorinfo(index) for index in range(session.input_size())]
    arrays = [np.zeros(info.dims[: info.rank], info.dtype) for info in infos]
    for index, array in enumerate(arrays):
        session.set_input(index, array)
    session.run()


if __name__ == "__main__":
    exit_with(lambda: _run_once(Path(sys.argv[1])))
