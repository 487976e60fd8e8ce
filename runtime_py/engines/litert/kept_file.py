"""A file that stays readable by a path when another process removes it."""

from __future__ import annotations

import os
from pathlib import Path


class KeptFile:
    """A file that is open, so that its contents exist until it is closed.

    Attributes:
        path: A path of its contents. On Linux it stays valid when the file is removed.
    """

    _descriptor: int | None = None

    def __init__(self, file: Path) -> None:
        """Open the file.

        Args:
            file: Its path.

        Raises:
            OSError: It cannot be read.
        """
        self._descriptor = os.open(file, os.O_RDONLY)
        by_descriptor = Path(f"/proc/self/fd/{self._descriptor}")
        self.path = by_descriptor if by_descriptor.exists() else file

    def close(self) -> None:
        """Close the file. `path` must not be used afterwards."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    __del__ = close
