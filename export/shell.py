"""Shell pipelines: each is shown before it runs, and ends when this process is interrupted.

Pipelines of filters run in this process, because starting a process for each command takes seconds. So do
exports that find their graphs in the cache. They write the same files. All else runs in a shell.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from export.loading_flags import set_flags
from export.processes import signals_blocked
from o2o.cli import interrupt
from o2o.cli.program import program_name, steps_of

GRACE = 0.5  # seconds that a process has to end after SIGTERM, and after SIGKILL

EXPORT = """
{python} -m export {model} -o . --max-length {max_length} --prefill-lengths {lengths} --cache {cache} \\
  {more}
"""


class StepFailed(Exception):
    """A shell command failed; it has printed the reason itself.

    Attributes:
        step: The command.
        code: Its exit code.
    """

    def __init__(self, step: str, code: int) -> None:
        super().__init__(f"a command failed (exit code {code})")
        self.step = step
        self.code = code


def export_command(model: Path, max_length: int, prefill_lengths: str, cache: str, *more: str) -> str:
    """Write the command that exports a model into the working folder.

    Args:
        model: The checkpoint's folder.
        max_length: S, tokens of context.
        prefill_lengths: T of each prefill, such as `64,128`.
        cache: The form of decode's KV cache.
        *more: Further arguments.

    Returns:
        The command, quoted for the shell.
    """
    return EXPORT.format(
        python=shlex.quote(sys.executable),
        model=shlex.quote(str(model)),
        max_length=max_length,
        lengths=prefill_lengths or "''",
        cache=cache,
        more=shlex.join([*more, *set_flags()]),
    )


def with_debug(step: str) -> str:
    """Let a command that exports show warnings and tracebacks.

    Args:
        step: A shell command.

    Returns:
        `export_command` with --debug; another command as it is.
    """
    return f"{step.rstrip()} --debug\n" if " -m export " in step else step


def run(steps: Iterable[str], folder: Path) -> None:
    """Run shell commands in a folder, up to the first that fails. Each is shown on stderr before it runs.

    Args:
        steps: The commands.
        folder: The working folder.

    Raises:
        StepFailed: A command failed.
    """
    for step in steps:
        if code := _run(step, folder):
            raise StepFailed(step, code)


def _run(step: str, folder: Path) -> int:
    if sys.stderr is not None:  # not shown by bash, which does not escape control characters
        sys.stderr.write(step.rstrip("\n") + "\n")  # in one call, which SIGINT does not cut
        sys.stderr.flush()
    command = _export_of(step) or _filters_of(step)
    if command is None:
        return _run_in_shell(step, folder)
    with contextlib.chdir(folder), steps_of(program_name(interrupt.program() or "convert")):
        return command()


def _export_of(step: str) -> Callable[[], int] | None:
    """An export that needs no trace: torch is neither imported here nor in a child."""
    from export import __main__ as export

    try:
        words = shlex.split(step.replace("\\\n", " "))
    except ValueError:
        return None
    is_export = words[:3] == [sys.executable, "-m", "export"]
    return partial(export.main, words[3:]) if is_export and export.is_cached(words[3:]) else None


def _filters_of(step: str) -> Callable[[], int] | None:
    """A pipeline of filters alone."""
    from o2o.cli.pipelines import parse
    from o2o.errors import UsageError
    from o2o.filters import find, pipeline

    try:
        pipelines = parse(step)
    except UsageError:
        return None
    is_known = all(find(stage[0]) is not None for one in pipelines for stage in one.stages)
    return partial(pipeline.run, pipelines) if is_known else None


def _run_in_shell(step: str, folder: Path) -> int:
    bin_ = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{bin_}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
    command = ["bash", "-euo", "pipefail", "-c", step]
    process: subprocess.Popen[bytes] | None = None
    try:
        with signals_blocked() as mask:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                process_group=0,
                preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, mask),
            )
        with interrupt.cleanup_at_exit(partial(_signal_group, process, signal.SIGKILL)):
            return process.wait()
    except BaseException:
        if process is not None:
            _end_group(process)
        raise


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End `process` and all others of its process group, and wait until they are gone."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + GRACE
        _signal_group(process, number)
        while _signal_group(process, 0) and time.monotonic() < deadline:
            time.sleep(0.01)


def _signal_group(process: subprocess.Popen[bytes], number: int) -> bool:
    """Send a signal, or only look (0). Returns whether a process of the group is left."""
    process.poll()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
        return True
    return False
