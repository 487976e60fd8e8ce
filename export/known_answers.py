"""Known answers of a new package: greedy tokens and logits, which --self-test compares with an engine.

A child process runs the model, so that its memory is free afterwards. A machine that cannot run a model can
still build its package, without answers.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from export.resources import available_memory, format_bytes

FILE = "self_test.json"
"""The file's name; `runtime_py.self_test` writes and reads it."""
MEMORY, MEMORY_GROWTH = 200_000_000, 2.5
"""Bytes that running a model takes, and a multiple of its size: engines map it and pack weights again."""


def store_known_answers(model: Path) -> str | None:
    """Run a model and store its answers next to it.

    Args:
        model: The model's file.

    Returns:
        None; or the reason why there are no answers.

    Raises:
        OSError: The child process cannot be started.
    """
    sizes = [file.stat().st_size for file in (model, model.with_name(f"{model.name}.data")) if file.exists()]
    needed, free = MEMORY + int(MEMORY_GROWTH * sum(sizes)), available_memory()
    if needed > free:
        return f"running the model takes {format_bytes(needed)} of memory, {format_bytes(free)} are free"
    command = [sys.executable, "-m", "runtime_py.self_test", str(model.absolute())]
    child = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if child.returncode == 0 and (model.parent / FILE).is_file():
        return None
    lines = child.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("self_test: ") if lines else f"exit code {child.returncode}"
