"""Copies between descriptors: all bytes arrive, whichever way the kernel offers."""

from __future__ import annotations

import errno
import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import pytest

from o2o.streams.copying import CHUNK, EndsEarly, copy

DATA = os.urandom(3 * CHUNK // 2)


@contextmanager
def source(kind: str, folder: Path) -> Iterator[int]:
    """A descriptor of DATA: a file, or a pipe that a thread fills."""
    if kind == "file":
        (folder / "source").write_bytes(DATA)
        descriptor = os.open(folder / "source", os.O_RDONLY)
    else:
        descriptor, writer = os.pipe()

        def fill() -> None:
            with suppress(BrokenPipeError), open(writer, "wb", buffering=0) as file:
                file.write(DATA)

        threading.Thread(target=fill, daemon=True).start()
    yield descriptor
    os.close(descriptor)


def copied(kind: str, sink: str, folder: Path, count: int | None = None) -> bytes:
    start = 0 if kind == "file" else None
    with source(kind, folder) as descriptor:
        if sink == "memory":
            memory = io.BytesIO()
            assert copy(descriptor, start, count, memory) == (len(DATA) if count is None else count)
            return memory.getvalue()
        if sink == "file":
            with open(folder / "sink", "wb") as file:
                copy(descriptor, start, count, file)
            return (folder / "sink").read_bytes()
        reader, writer = os.pipe()
        result = bytearray()

        def drain() -> None:
            with open(reader, "rb") as file:
                result.extend(file.read())

        thread = threading.Thread(target=drain)
        thread.start()
        with open(writer, "wb") as pipe:
            copy(descriptor, start, count, pipe)
        thread.join()
        return bytes(result)


@pytest.mark.parametrize("sink", ["file", "pipe", "memory"])
@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_all_bytes_arrive(kind: str, sink: str, tmp_path: Path) -> None:
    assert copied(kind, sink, tmp_path) == DATA
    assert copied(kind, sink, tmp_path, 1000) == DATA[:1000]


@pytest.mark.parametrize("sink", ["file", "memory"])
@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_a_source_that_is_too_short(kind: str, sink: str, tmp_path: Path) -> None:
    with pytest.raises(EndsEarly):
        copied(kind, sink, tmp_path, len(DATA) + 1)


@pytest.mark.parametrize("call", ["copy_file_range", "splice"])
def test_a_call_that_the_file_system_refuses(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, call, refuse, raising=False)
    kind = "file" if call == "copy_file_range" else "pipe"
    assert copied(kind, "file", tmp_path) == DATA


def test_the_position_of_a_file(tmp_path: Path) -> None:
    with source("file", tmp_path) as descriptor:
        sink: BinaryIO = io.BytesIO()
        assert copy(descriptor, 100, 50, sink) == 50
        assert copy(descriptor, 7, 3, sink) == 3
    assert sink.getvalue() == DATA[100:150] + DATA[7:10]  # type: ignore[attr-defined]
