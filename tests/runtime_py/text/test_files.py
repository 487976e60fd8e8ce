"""Files of a package in memory, by the methods of pathlib.Path that readers use."""

from __future__ import annotations

import pytest

from runtime_py.text.files import MemoryPath

FILES = {"a.json": b"{}", "folder/b.jinja": "é".encode(), "folder/c.txt": b"\xff"}
ROOT = MemoryPath("x.litertlm", FILES)


def test_files_and_folders() -> None:
    assert (ROOT / "a.json").exists()
    assert (ROOT / "folder").exists()
    assert not (ROOT / "b.jinja").exists()
    assert not (ROOT / "fold").exists()
    assert [str(path) for path in (ROOT / "folder").glob("*.jinja")] == ["x.litertlm: folder/b.jinja"]
    assert [(path.name, path.stem) for path in ROOT.glob("*")] == [("a.json", "a")]


def test_contents() -> None:
    assert (ROOT / "folder" / "b.jinja").read_text() == "é"
    assert (ROOT / "a.json").read_bytes() == b"{}"
    with pytest.raises(FileNotFoundError, match=r"x.litertlm: none.json"):
        (ROOT / "none.json").read_text()
    with pytest.raises(ValueError, match="decode"):
        (ROOT / "folder/c.txt").read_text()


def test_its_name_is_that_of_the_file() -> None:
    assert str(ROOT) == "x.litertlm"
