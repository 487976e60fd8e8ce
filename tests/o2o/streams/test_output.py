"""What is written appears when it is complete, or not at all."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from o2o.errors import O2oError, UsageError
from o2o.streams import open_file, open_output, output


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
    view = open_file(target).header
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


def test_a_file_that_cannot_be_read_meanwhile_is_named_as_it_is(tmp_path: Path) -> None:
    """Though it lies where the output will."""
    target, missing = tmp_path / "out", tmp_path / "missing"
    with pytest.raises(FileNotFoundError) as caught, open_output(target):
        missing.read_bytes()
    assert caught.value.filename == str(missing)


@pytest.fixture(params=["without a name", "with a temporary name", "without /proc"])
def beside(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the file is until it is complete, by what the system and the file system can do."""
    if request.param == "without /proc":
        monkeypatch.setattr(output, "DESCRIPTORS", "/nowhere")
    elif request.param == "with a temporary name":
        monkeypatch.delattr(os, "O_TMPFILE")


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("step", ["link", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt()])
def test_nothing_is_left_when_it_fails_at_the_very_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"old")
    real = getattr(os, step)

    def fail(*arguments: Any, **options: Any) -> None:
        if step == "link":
            real(*arguments, **options)  # it has its temporary name; now comes Ctrl-C
        raise error

    monkeypatch.setattr(os, step, fail)
    with contextlib.suppress(OSError, KeyboardInterrupt), open_output(target) as sink:
        sink.write(b"new")
    assert os.listdir(tmp_path) == ["out"]
    assert target.read_bytes() in (b"old", b"new")


@pytest.mark.usefixtures("beside")
def test_it_appears_in_every_file_system(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"old")
    with open_output(target) as sink:
        sink.write(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["out"]


def no_room(free: int, blocks: int = 1000) -> Any:
    """`os.statvfs` of a file system with so many bytes free."""
    return lambda path: SimpleNamespace(f_bavail=free // 10, f_frsize=10, f_blocks=blocks)


def test_a_disk_without_room_is_told_before_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"old")
    monkeypatch.setattr(os, "statvfs", no_room(5_000))
    with pytest.raises(O2oError) as caught, open_output(target, 1_000_000):
        pytest.fail("it is not begun")
    assert str(caught.value) == (
        f"out takes 1,000,000 bytes, {tmp_path} has 5,000 free: make room, or write elsewhere"
    )
    assert target.read_bytes() == b"old"
    with open_output(target, 5_000) as sink:
        sink.write(b"it fits")
    monkeypatch.setattr(os, "statvfs", no_room(0, blocks=0))
    with open_output(target, 1_000_000) as sink:
        sink.write(b"a file system that does not say")


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
