"""Run a command: every error is one line on stderr, with an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Callable

from o2o.cli import interrupt, terminal
from o2o.cli.extras import extra_of, install_command
from o2o.cli.interrupt import INTERRUPTED
from o2o.cli.program import called_as, owner, program_name
from o2o.errors import O2oError

CLOSED_PIPE = 141  # as a shell reports SIGPIPE

REMEDIES = {
    errno.ENOSPC: "make room, or write elsewhere",
    errno.EDQUOT: "make room, or write elsewhere",
    errno.EISDIR: "give a file in it, such as model.circle",
    errno.EFBIG: "the limit of `ulimit -f` or of the file system is reached: write elsewhere",
}


def run(program: str, body: Callable[[], int | None], debug: bool = False, failure_code: int = 1) -> int:
    """Run the body of a command and report every exception as one line on stderr.

    Args:
        program: The command's name, which begins the line; see `o2o.cli.program`.
        body: Returns the exit code; None is 0.
        debug: Print the traceback before the line.
        failure_code: The exit code for a model or file that cannot be taken. 2 if 1 is an answer, as of diff.

    Returns:
        The exit code of `body`, or of an `O2oError` (1 model, 2 usage). Errors of the system (full disk,
        missing file) are `failure_code`, SIGINT is 130. A closed pipe is 141, without a message, as in any
        Unix tool.
    """
    with terminal.escaping():
        return _run(program, body, debug, failure_code)


def _run(program: str, body: Callable[[], int | None], debug: bool, failure_code: int) -> int:
    try:
        with interrupt.interruptible():
            code = body() or 0
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        _discard_stdout()
        return CLOSED_PIPE
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        if isinstance(error, OSError):
            _discard_stdout()
        if debug:
            traceback.print_exception(error)
        report(program, _message(error))
        code = error.exit_code if isinstance(error, O2oError) else 1
        return failure_code if code == 1 else code
    if code == INTERRUPTED:
        if interrupt.claim_report():
            with called_as(owner() or program_name(program)):
                report(program, interrupt.MESSAGE)
        _discard_stdout()
        interrupt.exit_process()
    return code


def report(program: str, message: str) -> None:
    """Print a message on stderr, as one line.

    Args:
        program: The name of the command, which begins the line; see `o2o.cli.program`.
        message: Line breaks in it become spaces.
    """
    if sys.stderr is not None:  # closed: `print` would write to stdout
        print(f"{program_name(program)}: {' '.join(message.split())}", file=sys.stderr)


def _message(error: Exception) -> str:
    match error:
        case O2oError():
            return str(error)
        case OSError():
            message = (
                f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
            )
            return f"{message}: {REMEDIES[error.errno]}" if error.errno in REMEDIES else message
        case ModuleNotFoundError() if error.name and (extra := extra_of(error.name)):
            return f"{error.name} is not installed: {install_command(extra)}"
        case MemoryError():
            return "out of memory"
        case RecursionError():
            return "the graph is nested too deeply"
    return f"internal error: {type(error).__name__}: {error} (--debug shows where)"


def _discard_stdout() -> None:
    """Drop the unwritten output: Python would write it again at exit, and print an error."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        sys.stdout.flush()
        return
    with contextlib.suppress(OSError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
