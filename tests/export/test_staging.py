"""Temporary folders that leave nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.staging import publish, staging_folder


def test_files_are_moved_and_the_folder_goes(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with staging_folder(target) as folder:
        assert folder.parent == target
        for name in ("x", "y"):
            (folder / name).write_text(name)
        publish(folder, target, ["x"])
    assert [path.name for path in target.iterdir()] == ["x"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_removes_what_was_created(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(error), staging_folder(tmp_path / "a" / "b" / "c") as folder:  # noqa: PT012
        (folder / "x").write_text("x")
        raise error
    assert [path.name for path in tmp_path.rglob("*")] == ["a"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    with pytest.raises(ValueError, match="no"), staging_folder(tmp_path):
        raise ValueError("no")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError), staging_folder(tmp_path / "file" / "x"):  # noqa: PT011 - of several kinds
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
