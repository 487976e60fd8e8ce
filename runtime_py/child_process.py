"""Child processes that run a module of this package.

A child returns its memory to the system when it ends. A runtime that aborts ends only the child. The
protocol: a child that ends with a ModelError prints it to stderr and exits with `MODEL_ERROR`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import NoReturn

from o2o.errors import ModelError

MODEL_ERROR = 3
"""Exit status of a child that ends with a ModelError. Python itself exits with 0, 1, 2 and 120."""


class ChildFailed(OSError):
    """A child process failed, and its model is not known to be the reason.

    `returncode` is negative for a child that a signal ended, as in `subprocess`.
    """

    def __init__(self, reason: str, returncode: int) -> None:
        super().__init__(reason)
        self.returncode = returncode


def run_module(module: str, *arguments: object, environment: Mapping[str, str] | None = None) -> str:
    """Run `python -m module arguments...` and wait for it.

    Args:
        module: A module that calls `exit_with` when it is run, or reports its errors likewise.
        arguments: The command line; each argument is converted by `str`.
        environment: Environment variables, added to this process's own.

    Returns:
        The child's standard output.

    Raises:
        ModelError: The child ended with a ModelError; the message is the child's.
        ChildFailed: Any other failure; the message is the last line of the child's stderr.
    """
    import subprocess  # slow to import, and not needed to load what is stored

    command = [sys.executable, "-m", module, *map(str, arguments)]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **(environment or {})}
    child = subprocess.run(
        command, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if child.returncode == 0:
        return child.stdout
    lines = child.stderr.strip().splitlines()
    reason = lines[-1] if lines else f"exit status {child.returncode}"
    if child.returncode == MODEL_ERROR:
        raise ModelError(reason)
    raise ChildFailed(reason, child.returncode)


def exit_with(body: Callable[[], None]) -> NoReturn:
    """Run `body` as the whole work of a child process, and exit with the status that `run_module` expects.

    Args:
        body: The work. A ModelError or OSError becomes one line on stderr and an exit status.
    """
    try:
        body()
    except ModelError as error:
        print(error, file=sys.stderr)
        sys.exit(MODEL_ERROR)
    except OSError as error:
        sys.exit(str(error))
    sys.exit(0)
