"""The command that fails for a model, and the manner of its failure."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from o2o.errors import UsageError

PLACEHOLDER = "{}"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run.

    Attributes:
        code: The exit code, negative for a signal; None if the command was stopped for its time.
        stderr: What it wrote there.
    """

    code: int | None
    stderr: str

    def describe(self) -> str:
        """Describe the exit.

        Returns:
            Words for a message.
        """
        if self.code is None:
            return "takes too long"
        if self.code < 0:
            return f"ends by {signal.Signals(-self.code).name}"
        return f"exits with {self.code}"


class FailingCommand:
    """Runs a command for models, and compares its failure with that for the original.

    The command gets the file's name in place of `{}`, or else the file on stdin.

    Attributes:
        runs: How often it ran.
    """

    def __init__(self, command: Sequence[str], expect: str | None, timeout: float) -> None:
        """Take a command.

        Args:
            command: The program and its arguments.
            expect: A text that its stderr must contain; None for any.
            timeout: Seconds after which a run is stopped.
        """
        self.command, self.expect, self.timeout = list(command), expect, timeout
        self.runs = 0
        self._original: Outcome | None = None

    def watch(self, path: Path) -> Outcome:
        """Run the command for the original.

        Args:
            path: The original's file.

        Returns:
            Its failure, which `still_fails` looks for.

        Raises:
            UsageError: It succeeds, or lacks the expected text, or cannot be started.
        """
        outcome = self._run(path)
        if outcome.code == 0:
            raise UsageError("the command succeeds for this model (exit code 0): there is nothing to reduce")
        if self.expect is not None and self.expect not in outcome.stderr:
            raise UsageError(f"the command fails, but its stderr has no {self.expect!r}")
        self._original = outcome
        return outcome

    def still_fails(self, path: Path) -> bool:
        """Whether the command fails for another model as it did for the original.

        Args:
            path: The file of a model.

        Returns:
            True for the same exit code, with the expected text.
        """
        assert self._original is not None
        outcome = self._run(path)
        return outcome.code == self._original.code and (self.expect is None or self.expect in outcome.stderr)

    def _run(self, path: Path) -> Outcome:
        self.runs += 1
        named = any(PLACEHOLDER in argument for argument in self.command)
        command = [argument.replace(PLACEHOLDER, str(path)) for argument in self.command]
        with tempfile.TemporaryFile() as errors, open(os.devnull if named else path, "rb") as stdin:
            try:
                process = subprocess.Popen(
                    command,
                    stdin=stdin,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    start_new_session=True,  # so that its children can be ended with it
                )
            except OSError as error:
                raise UsageError(f"cannot start {command[0]}: {error.strerror}") from error
            code: int | None
            try:
                code = process.wait(self.timeout)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end(process)
            errors.seek(0)
            return Outcome(code, errors.read().decode(errors="replace"))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command that still runs, and its children."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
