"""What is written appears when it is complete, or not at all."""

from __future__ import annotations

import io
import os
import stat
import sys
from pathlib import Path

import pytest

from o2o.errors import UsageError
from o2o.streams import open_file, open_output


def test_output_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with open_output(target) as sink:
        sink.write(b"new")
        sink.flush()
        assert not target.exists()
    assert target.read_bytes() == b"new"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask, "as any new file"


@pytest.mark.parametrize("error", [OSError, ValueError, KeyboardInterrupt])
def test_the_old_file_stays_on_any_error(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"old")

    def interrupted() -> None:
        with open_output(target) as sink:
            sink.write(b"new")
            raise error

    with pytest.raises(error):
        interrupted()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_file_that_is_read_can_be_the_one_that_is_written(tmp_path: Path) -> None:
    target = tmp_path / "f"
    target.write_bytes(b"old" * 1000)
    view = open_file(target).head
    with open_output(target) as sink:
        sink.write(b"new")
        sink.write(view)
    assert target.read_bytes() == b"new" + b"old" * 1000


def test_a_symbolic_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    with open_output(tmp_path / "link") as sink:
        sink.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_a_device_is_written_to(tmp_path: Path) -> None:
    with open_output("/dev/null") as sink:
        sink.write(b"gone")
    with pytest.raises(OSError, match="No space left"), open_output("/dev/full") as sink:
        sink.write(b"too much")


def test_no_folder_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    target = tmp_path / "nowhere" / "out"
    with pytest.raises(OSError, match="No such file") as caught, open_output(target):
        pass
    assert caught.value.filename == str(target)


def test_a_terminal_is_no_place_for_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    main, terminal = os.openpty()
    with open(terminal, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(UsageError, match="stdout is a terminal"), open_output(None):
            pass
        monkeypatch.setattr(sys, "stdout", None)
        with pytest.raises(UsageError, match="stdout is closed"), open_output(None):
            pass
        monkeypatch.undo()
    os.close(main)


def test_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    binary = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(binary))
    with open_output(None) as sink:
        sink.write(b"model")
    assert binary.getvalue() == b"model"
