"""Child processes of tests."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def restore_signals() -> None:
    """Restore the default action of each signal: `nohup`, cron and `command &` make children ignore some."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def spawn(command: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Start `command` with default signal actions, and kill it at the end.

    Args:
        command: Program and arguments.
        options: Further arguments of `subprocess.Popen`.

    Yields:
        The running process.
    """
    with subprocess.Popen(command, preexec_fn=restore_signals, **options) as process:
        try:
            yield process
        finally:
            process.kill()
