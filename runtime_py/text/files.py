"""The files of a package: in a folder, or in memory if they come out of a `.litertlm` file."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path


class MemoryPath:
    """A file or folder in memory, with those methods of `pathlib.Path` that readers of packages use."""

    def __init__(self, place: str, files: Mapping[str, bytes], path: str = "") -> None:
        """Describe a place. It need not exist.

        Args:
            place: Where the files come from, for messages.
            files: Contents by path, with `/` between folders.
            path: The path of this place; "" for the outermost folder.
        """
        self._place, self._files, self._path = place, files, path

    def __truediv__(self, name: str) -> MemoryPath:
        return MemoryPath(self._place, self._files, f"{self._path}/{name}".lstrip("/"))

    def __str__(self) -> str:
        return f"{self._place}: {self._path}" if self._path else self._place

    @property
    def name(self) -> str:
        return self._path.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return os.path.splitext(self.name)[0]

    def exists(self) -> bool:
        """Check for a file or folder.

        Returns:
            Whether there is one.
        """
        return self._path in self._files or any(path.startswith(f"{self._path}/") for path in self._files)

    def glob(self, pattern: str) -> Iterator[MemoryPath]:
        """Find files in this folder.

        Args:
            pattern: A pattern for the name, such as `*.jinja`.

        Yields:
            The files.
        """
        for path in self._files:
            folder, _, name = path.rpartition("/")
            if folder == self._path and fnmatchcase(name, pattern):
                yield MemoryPath(self._place, self._files, path)

    def read_bytes(self) -> bytes:
        """Read the file.

        Returns:
            Its contents.

        Raises:
            FileNotFoundError: There is none.
        """
        if self._path not in self._files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        return self._files[self._path]

    def read_text(self, encoding: str = "utf-8") -> str:
        """Read the file as text.

        Args:
            encoding: How it is encoded.

        Returns:
            Its text.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is not text.
        """
        return self.read_bytes().decode(encoding)


Place = Path | MemoryPath
"""A folder or file of a package."""
