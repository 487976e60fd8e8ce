"""Associated files of a TFLite model: a ZIP archive behind the FlatBuffer, with labels, vocabularies, ...

Its offsets count from the beginning of the model file. So the archive is written anew behind each model.

Source: "Pack metadata and associated files into the model" of the TFLite metadata guide.
"""

from __future__ import annotations

import io
import tempfile
import zipfile
import zlib
from collections.abc import Sequence

from o2o.errors import ModelError
from o2o.model import AssociatedFile
from o2o.streams import Source

LIMIT = 1 << 28
"""Bytes of all associated files together. They are in memory."""
_END_OF_ARCHIVE = b"PK\5\6"
_MAX_END = 22 + (1 << 16) - 1  # bytes of the last record with the longest comment


def read_archive(source: Source) -> list[AssociatedFile]:
    """Read the archive at the end of a model file.

    Args:
        source: The file.

    Returns:
        Its files in order; none if there is no archive.

    Raises:
        ModelError: The archive is damaged, encrypted or larger than `LIMIT`.
    """
    data = source.unframed
    if data is None or _END_OF_ARCHIVE not in bytes(data[-_MAX_END:]):
        return []
    try:
        archive = zipfile.ZipFile(io.BufferedReader(_Bytes(data)))
    except zipfile.BadZipFile:
        return []  # these bytes occur in a constant
    with archive:
        infos = archive.infolist()
        if (size := sum(info.file_size for info in infos)) > LIMIT:
            raise ModelError(f"its associated files have {size:,} bytes: the limit is {LIMIT:,}")
        try:
            return [AssociatedFile(info, archive.read(info)) for info in infos]
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise ModelError(f"the archive of its associated files cannot be read: {error}") from error


def pack_archive(files: Sequence[AssociatedFile], start: int) -> bytes:
    """Return the archive of some files.

    Args:
        files: The files.
        start: The position of the archive in the model file, in bytes.

    Returns:
        The bytes of the archive. The same files give the same bytes.
    """
    with tempfile.TemporaryFile() as sparse:
        sparse.seek(start)
        with zipfile.ZipFile(sparse, "w") as archive:
            for file in files:
                archive.writestr(file.info, file.data)
        sparse.seek(start)
        return sparse.read()


class _Bytes(io.RawIOBase):
    """A file of existing bytes, which are not copied."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._data)}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        part = self._data[self._position : self._position + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)
