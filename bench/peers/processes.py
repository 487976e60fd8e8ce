"""Child processes that end with this one, with a log file for error messages."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from o2o.errors import O2oError

ROOT = Path(__file__).resolve().parents[2]
PR_SET_PDEATHSIG = 1
MAX_REASON = 300  # characters of an error message


class PeerFailed(O2oError):
    """A peer could not be installed, converted or run."""


def spawn(
    command: Sequence[str], log: Path, variables: Mapping[str, str] | None = None, pipe: int | None = None
) -> subprocess.Popen[str]:
    """Start a process in its own process group. The kernel kills it when this process ends.

    This repository's modules can be imported in it.

    Args:
        command: Program and arguments.
        log: The file that stderr is appended to, and stdout without a `pipe`.
        variables: Additional environment variables.
        pipe: `subprocess.PIPE` for stdin and stdout.

    Returns:
        The process.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    libc = ctypes.CDLL(None)
    with open(log, "ab") as log_file:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(variables or {})},
            stderr=log_file,
            start_new_session=True,
            preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
            text=True,
            stdin=pipe or subprocess.DEVNULL,
            stdout=pipe or log_file,
        )


def run_to_end(command: Sequence[str], log: Path, variables: Mapping[str, str] | None = None) -> None:
    """Run a process and wait for its end.

    Args:
        command: Program and arguments.
        log: The file for its output, which is replaced.
        variables: Additional environment variables.

    Raises:
        PeerFailed: It fails.
    """
    log.unlink(missing_ok=True)
    process = spawn(command, log, variables)
    try:
        process.wait()
    finally:
        kill(process)
    if process.returncode:
        raise PeerFailed(failure_reason(process.returncode, log))


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a process and all processes that it started.

    Args:
        process: A process of `spawn`.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def failure_reason(code: int, log: Path) -> str:
    """Describe why a process failed.

    Args:
        code: Its exit code; negative for a signal.
        log: Its log file.

    Returns:
        The last line of the log with an error, else the last line; and the exit code.
    """
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    message = (errors or lines or ["no output"])[-1]
    exit_text = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{message[:MAX_REASON]} ({exit_text}; {log})"
