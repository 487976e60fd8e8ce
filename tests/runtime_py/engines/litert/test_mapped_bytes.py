"""A file behind other bytes, mapped or read."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from runtime_py.engines.litert.mapped_bytes import MIN_MAPPED, PAGE, MappedBytes

HEADER = b"header" * 300


def behind(path: Path) -> MappedBytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return MappedBytes(len(HEADER), descriptor)
    finally:
        os.close(descriptor)


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


@pytest.mark.parametrize("more", [0, 1, PAGE - 1, PAGE + 1])
@pytest.mark.parametrize("mapped", [True, False])
def test_head_then_file(tmp_path, mapped, more):
    size = mapped * MIN_MAPPED // PAGE * PAGE + 2 * PAGE + more
    content = bytes(size - 5000) + os.urandom(5000)
    path = tmp_path / "file"
    path.write_bytes(content)
    joined = behind(path)
    joined.write(HEADER)
    assert joined.data[: len(HEADER)] == HEADER
    assert joined.data[len(HEADER) : joined.start] == bytes(joined.start - len(HEADER))
    assert joined.data[joined.start : joined.start + size] == content
    assert joined.data[joined.start + size :].strip(b"\0") == b""
    assert (joined.address + joined.start) % PAGE == 0
    assert (str(path) in Path("/proc/self/maps").read_text()) is mapped
    joined.close()
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_a_file_larger_than_what_is_read_of_it(tmp_path):
    path = tmp_path / "file"
    path.touch()
    os.truncate(path, 1 << 30)
    with open(path, "r+b") as file:
        file.seek((900 << 20) + 12345)
        file.write(b"found")
    before = resident()
    joined = behind(path)
    place = joined.start + (900 << 20) + 12345
    assert joined.data[place : place + 5] == b"found"
    assert resident() - before < 10_000_000
    joined.close()


def test_the_memory_can_be_used_afterwards(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * MIN_MAPPED)
    joined = behind(path)
    data, address = joined.data, joined.address
    joined.close()
    ctypes.memset(address, 1, len(data))
    assert data == b"\1" * len(data)
    assert path.read_bytes() == b"x" * MIN_MAPPED


def test_a_file_that_becomes_shorter(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    monkeypatch.setattr(os, "preadv", lambda *args: 0)
    with pytest.raises(OSError, match="shorter"):
        behind(path)
