"""Temporary folders are removed after the block, and when an interrupt comes at any instruction."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from export.staging import staging_folder
from o2o.cli import interrupt
from o2o.streams.output import open_output
from o2o.streams.temporary import temporary_folder
from tests.conftest import ROOT


def interrupted_at(number: int, action: Callable[[], object]) -> bool:
    """Raise KeyboardInterrupt at instruction `number` of this project's code. False if there are fewer."""
    instructions = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal instructions
        file = frame.f_code.co_filename
        if not (file.startswith((f"{ROOT}/o2o", f"{ROOT}/export")) or file.endswith("contextlib.py")):
            return None
        frame.f_trace_opcodes = True
        instructions += event == "opcode"
        if instructions == number and event == "opcode":
            raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(None)
    return instructions >= number


def test_a_folder_lives_as_long_as_its_block(tmp_path: Path) -> None:
    with temporary_folder(tmp_path, ".build-") as folder:
        (folder / "file").write_text("data")
        assert folder.parent == tmp_path
        assert folder.name.startswith(".build-")
    assert not list(tmp_path.iterdir())
    with contextlib.suppress(ValueError), temporary_folder(tmp_path) as folder:
        (folder / "file").write_text("data")
        raise ValueError
    assert not list(tmp_path.iterdir())


def test_the_system_has_a_folder_for_temporary_files() -> None:
    with temporary_folder() as folder:
        assert folder.parent == Path(tempfile.gettempdir())


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), temporary_folder(tmp_path / "missing"):
        pytest.fail("there is no folder")


@pytest.mark.parametrize(
    ("kind", "complete"), [("folder", []), ("staging", ["new", "new/out"]), ("file", ["file"])]
)
def test_an_interrupt_at_any_instruction_leaves_nothing(
    kind: str, complete: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process would end with `exit_process`, which calls `clean_up`: no garbage is collected there."""
    monkeypatch.setattr("o2o.streams.output._open_unnamed", lambda _: None)  # as on NFS
    folder = tmp_path / "folder"
    folder.mkdir()
    inside = []

    def action() -> None:
        if kind == "folder":
            with temporary_folder(folder) as temporary:
                inside.append(temporary)
        elif kind == "staging":
            with staging_folder(folder / "new" / "out") as temporary:
                inside.append(temporary)
        else:
            with open_output(folder / "file") as sink:
                sink.write(b"data")
                inside.append(folder)

    count = 0
    tracebacks = []  # they hold the frames of a context manager that was interrupted while it was entered
    while True:
        count += 1
        inside.clear()
        try:
            if not interrupted_at(count, action):
                break
        except KeyboardInterrupt as error:
            tracebacks.append(error)
        interrupt.clean_up()
        paths = [str(path.relative_to(folder)) for path in folder.rglob("*")]
        assert not inside or not paths or paths == complete, count
        assert inside or not paths, count
        for path in reversed(paths):
            (folder / path).unlink() if (folder / path).is_file() else (folder / path).rmdir()
    assert count > 100
