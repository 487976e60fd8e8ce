"""Processes that are started here, end with us, and whose last words are kept."""

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
SHOWN = 300  # characters of a reason


class PeerFailed(O2oError):
    """What a peer could not do, in one line."""


def started(
    command: Sequence[str], log: Path, variables: Mapping[str, str] | None = None, pipe: int | None = None
) -> subprocess.Popen[str]:
    """A process in a group of its own that the system ends when this one ends, even if it is stopped then.

    It finds this repository's modules. What it writes to stderr, and to stdout without a `pipe`, is added to
    `log`.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    libc = ctypes.CDLL(None)
    with open(log, "ab") as words:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(variables or {})},
            stderr=words,
            start_new_session=True,
            preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
            text=True,
            stdin=pipe or subprocess.DEVNULL,
            stdout=pipe or words,
        )


def finish(command: Sequence[str], log: Path, variables: Mapping[str, str] | None = None) -> None:
    """Run it to its end. Raises PeerFailed with the reason, when it fails."""
    log.unlink(missing_ok=True)
    process = started(command, log, variables)
    try:
        process.wait()
    finally:
        end(process)
    if process.returncode:
        raise PeerFailed(reason(process.returncode, log))


def end(process: subprocess.Popen[str]) -> None:
    """The process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def reason(code: int, log: Path) -> str:
    """Why a process ended: the last line that it wrote which tells an error, else the last, else how."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    told = (errors or lines or ["it said nothing"])[-1]
    how = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{told[:SHOWN]} ({how}; {log})"
