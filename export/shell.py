"""Pipelines of commands, shown as they run, in a folder that goes with what they leave behind."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from o2o import errors

EXPORT = """
{python} -m export {model} -o . --max-length {length} --prefill-lengths {lengths} --cache {cache} \\
  {more}
"""


def export(model: Path, length: int, lengths: str, cache: str, *more: str) -> str:
    """The command that exports `model` into the working folder. lengths: `64,128`."""
    return EXPORT.format(
        python=shlex.quote(sys.executable),
        model=shlex.quote(str(model)),
        length=length,
        lengths=lengths or "''",
        cache=cache,
        more=shlex.join(more),
    )


@contextlib.contextmanager
def workshop(beside: Path) -> Iterator[Path]:
    """A folder to build in, in the file system of the folder `beside`; it goes with all that is in it."""
    with tempfile.TemporaryDirectory(prefix=".build-", dir=beside) as folder:
        yield Path(folder)


def run(steps: str, folder: Path) -> int:
    """Run the shell commands `steps` in `folder`, which stop at the first that fails: the exit code.

    Each is shown on stderr before it runs. Whatever ends this process's wait ends the commands, too.
    """
    bin_ = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{bin_}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
    shell = ["bash", "-v", "-euo", "pipefail", "-c", steps]
    with subprocess.Popen(shell, cwd=folder, env=environment, process_group=0) as process:
        try:
            return process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            raise


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """In here SIGTERM and SIGHUP unwind as Ctrl-C does, so that nothing is left behind."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    old = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def failed(code: int, what_is_left: str) -> errors.ModelError:
    """The error of commands that ended with `code`, having said themselves what was wrong."""
    return errors.ModelError(f"a command failed (exit code {code}), {what_is_left}")
