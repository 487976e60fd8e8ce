"""Where models come from and go to: files, pipes, devices, and what happens when they fail."""

from __future__ import annotations

import errno
import io
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from o2o.errors import UsageError
from o2o.streams import open_output, read_file, read_stdin

Stdin = Callable[[int], None]


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Stdin:
    """Put a file descriptor behind sys.stdin."""

    def put(descriptor: int) -> None:
        monkeypatch.setattr(sys, "stdin", os.fdopen(descriptor))

    return put


def piped(data: bytes) -> int:
    """The reading end of a pipe into which `data` is written by and by."""
    reader, writer = os.pipe()

    def feed() -> None:
        with open(writer, "wb") as sink:
            sink.write(data)

    threading.Thread(target=feed, daemon=True).start()
    return reader


def is_mapped(view: memoryview) -> bool:
    return type(view.obj).__name__ == "mmap"


def test_a_file_is_mapped(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    view = read_file(tmp_path / "f")
    assert (bytes(view), is_mapped(view)) == (b"abc", True)


def test_a_file_on_stdin_is_mapped(tmp_path: Path, stdin: Stdin) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    stdin(os.open(tmp_path / "f", os.O_RDONLY))
    view = read_stdin()
    assert (bytes(view), is_mapped(view)) == (b"abc", True)


def test_a_file_of_which_some_was_read_goes_on_there(tmp_path: Path, stdin: Stdin) -> None:
    """As in `(head -c 3 > header; gc.py) < file`."""
    (tmp_path / "f").write_bytes(b"abcdef")
    descriptor = os.open(tmp_path / "f", os.O_RDONLY)
    os.read(descriptor, 3)
    stdin(descriptor)
    assert bytes(read_stdin()) == b"def"


def no_splice(*_: object) -> int:
    raise OSError(errno.EINVAL, "a file system that cannot")


@pytest.mark.parametrize("size", [0, 100, 300_000])
@pytest.mark.parametrize("kernel", ["moves pages", "cannot move pages", "has no splice"])
def test_a_pipe_is_spooled(size: int, kernel: str, stdin: Stdin, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernel == "cannot move pages":
        monkeypatch.setattr(os, "splice", no_splice)
    elif kernel == "has no splice":
        monkeypatch.delattr(os, "splice")
    data = bytes(range(250)) * -(-size // 250)
    stdin(piped(data))
    view = read_stdin()
    assert bytes(view) == data
    assert is_mapped(view) == (size > 0)


def test_a_named_pipe(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    threading.Thread(target=lambda: fifo.write_bytes(b"through"), daemon=True).start()
    assert bytes(read_file(fifo)) == b"through"


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    assert bytes(read_file(tmp_path / "f")) == b""


def test_a_terminal_or_nothing_on_stdin_is_wrong_usage(monkeypatch: pytest.MonkeyPatch, stdin: Stdin) -> None:
    main, terminal = os.openpty()
    stdin(terminal)
    with pytest.raises(UsageError, match="pipe a model in"):
        read_stdin()
    os.close(main)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="pipe a model in"):
        read_stdin()


# ----------------------------------------------------------------------------------------------------


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
    view = read_file(target)
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


# Reads 200 MB from a pipe and passes it on; prints the most memory of its own that it used, in KiB.
SPOOLER = """
import resource, sys
from o2o import streams
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
view = streams.read_stdin()
with streams.open_output(sys.argv[1]) as sink:
    sink.write(view[:10])
print(len(view), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_large_pipe_costs_no_memory(tmp_path: Path) -> None:
    chunk = bytes(1 << 20)
    command = [sys.executable, "-c", SPOOLER, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        for _ in range(200):
            process.stdin.write(chunk)
        out, _ = process.communicate()
    size, memory = map(int, out.split())
    assert size == 200 << 20
    assert memory < 20 << 10, "of 200 MB, next to nothing"
