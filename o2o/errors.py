"""Errors that a user can act on: one line each, with an exit code; and the one place that prints them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable


class O2oError(Exception):
    """Something that went wrong and what to do about it, in one line. `exit_code` goes to the shell."""

    exit_code = 1


class ModelError(O2oError):
    """A model that this tool cannot take: malformed, unsupported, or not provably right to change."""


class UsageError(O2oError):
    """Wrong arguments, or a selector that matches nothing."""

    exit_code = 2


def _let_go_of_stdout() -> None:
    """Forget what could not be written: Python would try again at exit, and complain."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        sys.stdout.flush()
        return
    with contextlib.suppress(OSError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(program: str, body: Callable[[], int | None], debug: bool = False) -> int:
    """Run `body` and turn whatever it raises into one line on stderr and an exit code.

    Exit codes: what `body` returns (None is 0); an `O2oError`'s own (1 model, 2 usage); 1 for the system's
    errors (full disk, missing file); 130 for Ctrl-C; 141 for a closed pipe, which is silent as in any
    Unix tool. With `debug` the traceback comes first.
    """
    try:
        code = body() or 0
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        _let_go_of_stdout()
        return 141
    except KeyboardInterrupt:
        return 130
    except O2oError as error:
        message, code = str(error), error.exit_code
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        message, code = f"{where}{error.strerror or error}", 1
        _let_go_of_stdout()
    except MemoryError:
        message, code = "out of memory", 1
    except RecursionError:
        message, code = "the graph is nested too deeply", 1
    except Exception as error:
        message, code = f"internal error: {type(error).__name__}: {error} (--debug shows where)", 1
    if debug:
        import traceback

        traceback.print_exc()
    print(f"{program}: {' '.join(message.split())}", file=sys.stderr)
    return code
