"""Loading of TFLite models into LiteRT's CompiledModel, on the CPU (XNNPACK)."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

from o2o.cli.silence_stderr import captured_stderr, silence_stderr_forever, silenced_stderr
from o2o.errors import ModelError
from runtime_py.engines.litert.mapped_bytes import MappedBytes

with silenced_stderr():
    from ai_edge_litert.compiled_model import CompiledModel
    from ai_edge_litert.environment import Environment
    from ai_edge_litert.options import CpuOptions, HardwareAccelerator, Options

IN_MEMORY = ":memory" if hasattr(os, "memfd_create") else ""
"""Instead of a path for packed weights: pack in memory, once for all signatures. The empty path packs once
for each signature."""

_PLACE = re.compile(r"^[\w./-]+\.(cc|h):\d+ ")  # in LiteRT's source


class RefusedByLiteRt(ModelError):
    """LiteRT cannot load or run a model."""

    @classmethod
    def from_error(cls, error: RuntimeError) -> RefusedByLiteRt:
        """Return the error for an error of LiteRT.

        Args:
            error: LiteRT's error: a tree of lines with the cause last.

        Returns:
            An error with the cause alone.
        """
        return cls._of((str(error).strip().splitlines() or [repr(error)])[-1].lstrip("└ "))

    @classmethod
    def _of(cls, reason: str) -> RefusedByLiteRt:
        return cls(f"LiteRT refuses the model: {reason}")

    def with_reason(self, start: Callable[[], object]) -> RefusedByLiteRt:
        """Return an error with the reasons that LiteRT writes to its log, which say more than its errors.

        Args:
            start: What LiteRT refused. It is called again, to collect the log.

        Returns:
            The error.
        """
        log: list[str] = []
        with captured_stderr(log), contextlib.suppress(ModelError):
            start()
        lines = [line.removeprefix("ERROR: ") for line in log if line.startswith("ERROR: ")]
        reasons = [_PLACE.sub("", line).strip().rstrip(".") for line in lines if not line.startswith("[")]
        return self._of("; ".join(reasons[:2])) if reasons else self


def compile_model(model: bytes | MappedBytes | Path, packed: Path | None, threads: int) -> CompiledModel:
    """Load a TFLite model.

    Args:
        model: The file's bytes, which must stay valid until the model is closed, or its path.
        packed: A file with packed weights, or a new one to be filled; None to pack in memory.
        threads: Number of threads.

    Returns:
        LiteRT's model.

    Raises:
        RefusedByLiteRt: LiteRT refuses the model.
    """
    cpu = CpuOptions(num_threads=threads, xnnpack_weight_cache_path=str(packed or IN_MEMORY))
    options = Options(HardwareAccelerator.CPU, cpu)
    try:
        if isinstance(model, Path):
            return CompiledModel.from_file(str(model), environment=_environment(), options=options)
        data = model.data if isinstance(model, MappedBytes) else model
        return CompiledModel.from_buffer(data, environment=_environment(), options=options)
    except RuntimeError as error:
        raise RefusedByLiteRt.from_error(error) from error


def silence_at_exit() -> None:
    """Discard stderr at the end of the process: LiteRT logs when its environment is destroyed."""
    atexit.register(silence_stderr_forever)


def _environment() -> Environment:
    """The process's only environment: LiteRT logs the creation and the end of each."""
    with _creating:  # `functools.cache` alone calls the function twice for two threads
        return _create_environment()


_create_environment = functools.cache(Environment.create)
_creating = threading.Lock()
