"""Where models come from: files, pipes, devices, and what happens when they end early."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from o2o.errors import ModelError, O2oError, UsageError
from o2o.streams import FileSource, MemorySource, RangeSource, Source, open_file, open_source
from o2o.streams.framing import AT, LENGTH, Frame
from o2o.streams.source import PipeSource

Stdin = Callable[[int], None]
HEADER = AT + LENGTH


def framed(header: int, file: int) -> bytes:
    """A file whose frame says that; its other bytes differ from place to place."""
    data = bytearray(bytes(range(251)) * -(-file // 251))[:file]
    data[AT:HEADER] = Frame(header, file).packed()
    return bytes(data)


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


def everything(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        return file.read()


def all_of(source: Source) -> bytes:
    assert source.size is not None
    return source.view(0, source.size).tobytes()


def is_mapped(source: Source) -> bool:
    return type(source.header.obj).__name__ == "mmap"


# --- files -----------------------------------------------------------------------------------------------


def test_a_file_without_a_frame_is_mapped(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    source = open_file(tmp_path / "f")
    assert (bytes(source.header), is_mapped(source)) == (b"abc", True)


def test_of_a_framed_file_the_head_is_read(tmp_path: Path) -> None:
    data = framed(100, 5000)
    (tmp_path / "f").write_bytes(data)
    source = open_file(tmp_path / "f")
    assert bytes(source.header) == data[:100]
    assert source.view(1000, 50).tobytes() == data[1000:1050]
    assert b"".join(source.chunks(90, 4000, 33)) == data[90:4090]


def test_a_file_on_stdin_is_mapped(tmp_path: Path, stdin: Stdin) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    stdin(os.open(tmp_path / "f", os.O_RDONLY))
    source = open_source("-")
    assert (bytes(source.header), is_mapped(source)) == (b"abc", True)


def test_a_file_of_which_some_was_read_goes_on_there(tmp_path: Path, stdin: Stdin) -> None:
    """As in `(head -c 3 > header; gc.py) < file`."""
    (tmp_path / "f").write_bytes(b"abcdef")
    descriptor = os.open(tmp_path / "f", os.O_RDONLY)
    os.read(descriptor, 3)
    stdin(descriptor)
    assert bytes(open_source("-").header) == b"def"


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    assert bytes(open_file(tmp_path / "f").header) == b""


def test_a_file_that_is_cut_short(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(framed(100, 5000)[:-1])
    with pytest.raises(ModelError, match=r"f: truncated: 4,999 bytes of 5,000"):
        open_file(tmp_path / "f")


def test_a_file_that_loses_its_name_is_still_there(tmp_path: Path) -> None:
    data = framed(100, 5000)
    (tmp_path / "f").write_bytes(data)
    source = open_file(tmp_path / "f")
    (tmp_path / "f").unlink()
    assert all_of(source) == data


def test_a_file_that_is_cut_while_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(framed(100, 50000))
    source = open_file(tmp_path / "f")
    os.truncate(tmp_path / "f", 10000)
    with open(tmp_path / "out", "wb") as sink, pytest.raises(ModelError, match="became shorter"):
        source.copy(100, 49900, sink)


# --- pipes -----------------------------------------------------------------------------------------------


def no_splice(*_: object, **__: object) -> int:
    raise OSError(errno.EINVAL, "a file system that cannot")


@pytest.fixture(params=["moves pages", "cannot move pages", "has no splice"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("splice", "copy_file_range"):
        if request.param == "cannot move pages":
            monkeypatch.setattr(os, name, no_splice)
        elif request.param == "has no splice":
            monkeypatch.delattr(os, name)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("size", [0, 100, 300_000])
def test_a_pipe_without_a_frame_is_spooled(size: int, stdin: Stdin) -> None:
    data = bytes(range(250)) * -(-size // 250)
    stdin(piped(data))
    source = open_source("-")
    assert bytes(source.header) == data
    assert is_mapped(source) == (size > 0)


def test_a_named_pipe(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    threading.Thread(target=lambda: fifo.write_bytes(b"through"), daemon=True).start()
    assert bytes(open_file(fifo).header) == b"through"


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("to", ["file", "appended file", "pipe", "memory"])
def test_data_pass_in_order(to: str, tmp_path: Path) -> None:
    data = framed(100, 400_000)
    source = PipeSource(piped(data), "pipe")
    assert bytes(source.header) == data[:100]
    ranges = [(128, 1000), (2000, 100_000), (102_000, 0), (150_000, 249_000)]
    source.announce_copies(ranges)
    wanted = b"".join(data[start : start + size] for start, size in ranges)
    result = bytearray()

    def copy_to(sink: io.BufferedIOBase) -> None:
        for start, size in ranges:
            source.copy(start, size, sink)  # type: ignore[arg-type]
        source.finish()
        sink.flush()

    if to == "memory":
        memory = io.BytesIO()
        copy_to(memory)
        result += memory.getvalue()
    elif to == "pipe":
        reader, writer = os.pipe()
        thread = threading.Thread(target=lambda: result.extend(everything(reader)))
        thread.start()
        with open(writer, "wb") as sink:
            copy_to(sink)
        thread.join()
    else:
        with open(tmp_path / "out", "ab" if "appended" in to else "wb") as sink:
            copy_to(sink)
        result += (tmp_path / "out").read_bytes()
    assert result == wanted


def test_a_file_system_that_stops_in_mid_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """copy_file_range says 0 there, which is no end."""
    data, real = framed(100, 5000), os.copy_file_range
    (tmp_path / "in").write_bytes(data)
    moved: list[int] = []

    def some(source: int, sink: int, count: int, **options: int) -> int:
        moved.append(0 if moved else real(source, sink, min(count, 1000), **options))
        return moved[-1]

    monkeypatch.setattr(os, "copy_file_range", some)
    with open(tmp_path / "out", "wb") as sink:
        open_file(tmp_path / "in").copy(100, 4900, sink)
    assert (tmp_path / "out").read_bytes() == data[100:]
    assert moved == [1000, 0]


@pytest.mark.parametrize("ranges", [[(500, 10), (200, 10)], [(200, 100), (250, 10)], [(50, 10)]])
def test_data_out_of_order_are_kept(ranges: list[tuple[int, int]]) -> None:
    data = framed(100, 5000)
    source = PipeSource(piped(data), "pipe")
    source.announce_copies(ranges)
    sink = io.BytesIO()
    for start, size in ranges:
        source.copy(start, size, sink)
    assert sink.getvalue() == b"".join(data[start : start + size] for start, size in ranges)


def test_a_small_model_is_read_at_once(stdin: Stdin) -> None:
    """So that the command before it in the pipe can end while this one works."""
    data = framed(100, 5000)
    stdin(piped(data))
    source = open_source("-")
    assert bytes(source.header) == data
    source.announce_copies([(500, 10)])
    sink = io.BytesIO()
    source.copy(500, 10, sink)
    source.finish()
    assert sink.getvalue() == source.view(500, 10).tobytes() == data[500:510]

    stdin(piped(data[:-1]))
    with pytest.raises(ModelError, match="truncated: 4,999 bytes of 5,000"):
        open_source("-")


def test_numbers_that_are_needed_are_kept() -> None:
    data = framed(100, 5000)
    source = PipeSource(piped(data), "pipe")
    assert source.view(4000, 10).tobytes() == data[4000:4010]
    assert source.view(200, 10).tobytes() == data[200:210]
    source.finish()
    assert all_of(source) == data


def test_what_went_by_is_gone() -> None:
    source = PipeSource(piped(framed(100, 5000)), "pipe")
    source.announce_copies([(200, 100)])
    source.copy(200, 100, io.BytesIO())
    with pytest.raises(ModelError, match="cannot be read again"):
        source.view(200, 100)


def test_what_comes_before_is_not_taken_for_what_follows() -> None:
    source = PipeSource(piped(framed(100, 5000)), "pipe")
    source.copy(200, 100, io.BytesIO())
    with pytest.raises(ModelError, match="cannot be read again"):
        source.copy(250, 100, io.BytesIO())


def test_no_room_for_what_is_to_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the folder for temporary files that is full, and not the output's disk."""
    source = PipeSource(piped(framed(100, 5000)), "pipe")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("o2o.streams.source.copy", full)
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/tmp")
    with pytest.raises(O2oError) as caught:
        source.view(200, 10)
    assert str(caught.value) == (
        "pipe must be stored temporarily, but /tmp has no room (No space left on device): read a file, "
        "or set TMPDIR to another folder"
    )


@pytest.mark.parametrize(
    ("available", "detail"), [(20, "neither"), (60, "60 bytes of 100"), (4999, "4,999 bytes of 5,000")]
)
def test_a_pipe_that_ends_early(available: int, detail: str) -> None:
    data = framed(100, 5000)[:available]
    if available < HEADER:
        assert (
            bytes(PipeSource(piped(data), "pipe").header) == data
        )  # which is no model, as its reader will say
        return

    def passed() -> None:
        source = PipeSource(piped(data), "pipe")
        source.announce_copies([(200, 100)])
        source.copy(200, 100, io.BytesIO())
        source.finish()

    with pytest.raises(ModelError, match=f"pipe: truncated: {detail}"):
        passed()


def test_a_pipe_that_ends_in_what_is_wanted() -> None:
    source = PipeSource(piped(framed(100, 500_000)[:300_000]), "pipe")
    source.announce_copies([(200, 499_000)])
    with pytest.raises(ModelError, match="pipe: truncated"):
        source.copy(200, 499_000, io.BytesIO())


def test_the_writer_of_a_pipe_ends_in_peace() -> None:
    """What nobody needs is taken, so that the command before does not die of a closed pipe."""
    data = framed(100, 3_000_000)
    reader, writer = os.pipe()
    written: list[int] = []

    def feed() -> None:
        with open(writer, "wb") as sink:
            written.append(sink.write(data))

    thread = threading.Thread(target=feed)
    thread.start()
    source = PipeSource(reader, "pipe")
    os.close(reader)
    source.announce_copies([(200, 10)])
    source.copy(200, 10, io.BytesIO())
    source.finish()
    thread.join()
    assert written == [len(data)]


def test_a_terminal_or_nothing_on_stdin_is_wrong_usage(monkeypatch: pytest.MonkeyPatch, stdin: Stdin) -> None:
    main, terminal = os.openpty()
    stdin(terminal)
    with pytest.raises(UsageError, match="pipe a model in"):
        open_source("-")
    os.close(main)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="pipe a model in"):
        open_source("-")


# Passes 200 MB from a pipe or a file to a file; prints the most memory that it needed for that, in KiB.
PASSER = """
import sys
from o2o import streams
def peak():  # not ru_maxrss, which goes on from what the process that started this one had
    with open("/proc/self/status") as status:
        return int(status.read().partition("VmHWM:")[2].split()[0])
before = peak()
source = streams.open_source(sys.argv[1])
with streams.open_output(sys.argv[2]) as sink:
    source.announce_copies([(4096, (200 << 20) - 4096)])
    source.copy(4096, (200 << 20) - 4096, sink)
print(peak() - before)
"""


@pytest.mark.parametrize("through", ["pipe", "unframed pipe", "file"])
def test_much_data_costs_no_memory(through: str, tmp_path: Path) -> None:
    size = 200 << 20
    with open(tmp_path / "in", "wb") as file:
        file.write(
            bytes(4096)
            if through == "unframed pipe"
            else framed(4096, 4096)[:AT] + Frame(4096, size).packed()
        )
        file.truncate(size)
    argument = str(tmp_path / "in") if through == "file" else "-"
    with subprocess.Popen(["cat", tmp_path / "in"], stdout=subprocess.PIPE) as cat:
        command = [sys.executable, "-c", PASSER, argument, str(tmp_path / "out")]
        memory = int(subprocess.run(command, stdin=cat.stdout, stdout=subprocess.PIPE, check=True).stdout)
    assert (tmp_path / "out").stat().st_size == size - 4096
    assert memory < 20 << 10, "of 200 MB, next to nothing"


def test_bytes_in_memory() -> None:
    source = MemorySource(b"abcdef", "some")
    sink = io.BytesIO()
    source.copy(1, 2, sink)
    assert (sink.getvalue(), all_of(source)) == (b"bc", b"abcdef")
    with pytest.raises(ModelError, match="some: truncated"):
        source.view(5, 2)


def test_a_file_source_closes_what_it_opened(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(framed(100, 200))
    with open(tmp_path / "f", "rb") as file:
        before = len(os.listdir("/proc/self/fd"))
        source = FileSource(file.fileno(), "f")
        del source
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("of_file", [False, True])
def test_a_part_of_a_source(tmp_path: Path, of_file: bool) -> None:
    """It has positions of its own, whatever is before and behind it."""
    inner = framed(100, 300)
    data = bytes(50) + inner + b"behind"
    (tmp_path / "whole").write_bytes(data)
    whole: Source = open_file(tmp_path / "whole") if of_file else MemorySource(data)
    part = RangeSource(whole, 50, 300)
    assert (part.size, part.origin, part.header.tobytes(), part.unframed) == (300, 50, inner[:100], None)
    assert part.view(7, 9).tobytes() == inner[7:16]
    assert b"".join(part.chunks(0, 300, 64)) == inner
    sink = io.BytesIO()
    part.copy(200, 100, sink)
    assert sink.getvalue() == inner[200:]
    assert RangeSource(part, 10, 20).origin == 60
    for read in (lambda: part.view(299, 2), lambda: part.copy(0, 301, sink)):
        with pytest.raises(ModelError, match="truncated"):
            read()
    with pytest.raises(ModelError, match="truncated"):
        RangeSource(whole, 50, 299)  # the model's frame says 300


def test_a_part_without_a_frame() -> None:
    part = RangeSource(MemorySource(b"beforeTFL3 and an archive"), 6, 19)
    assert part.header.tobytes() == b"TFL3 and an archive"
    assert part.unframed is not None
    assert part.unframed.tobytes() == b"TFL3 and an archive"


def test_bytes_that_were_released_are_read_again(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096
    (tmp_path / "file").write_bytes(data)
    source = open_file(tmp_path / "file")
    for each in (source, RangeSource(source, 100, 1 << 19), MemorySource(data, "memory")):
        view = each.view(5000, 9000)
        before = view.tobytes()
        each.release(5000, 9000)
        assert view.tobytes() == before
