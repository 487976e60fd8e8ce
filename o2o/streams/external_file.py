"""A file beside a model that holds its weights. It is opened when bytes of it are needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from o2o.streams.source import Source, open_file


class ExternalFile(Source):
    """A file that a model names. A model can be read and written without it."""

    header = memoryview(b"")

    def __init__(self, path: Path) -> None:
        """Name the file.

        Args:
            path: The file. It need not exist.
        """
        self.name = str(path)
        self.path = path
        self._opened: Source | None = None

    def _file(self) -> Source:
        if self._opened is None:
            self._opened = open_file(self.path)
        return self._opened

    @property
    def size(self) -> int | None:
        return self._file().size

    def view(self, start: int, size: int) -> np.ndarray:
        return self._file().view(start, size)

    def chunks(self, start: int, size: int, chunk: int) -> Iterator[bytes]:
        return self._file().chunks(start, size, chunk)

    def release(self, start: int, size: int) -> None:
        self._file().release(start, size)

    def copy(self, start: int, size: int, sink: BinaryIO) -> None:
        self._file().copy(start, size, sink)
