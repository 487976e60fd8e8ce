"""Temporary folders, which a signal at any moment does not leave behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from o2o.cli import interrupt


@contextlib.contextmanager
def temporary_folder(parent: Path | None = None, prefix: str = "o2o-") -> Iterator[Path]:
    """Make a folder that is removed with its files after the block, and also if SIGINT ends the process.

    `tempfile.TemporaryDirectory` leaves the folder if SIGINT comes while it is entered: the process ends with
    `os._exit`, and the folder's name is lost. Here the name exists before the folder.

    Args:
        parent: The folder to make it in; None for the system's folder of temporary files.
        prefix: How its name begins.

    Yields:
        The folder.

    Raises:
        OSError: It cannot be made.
    """
    import shutil  # slow to import, and not needed to load a package
    import tempfile

    folder = Path(tempfile.mktemp(prefix=prefix, dir=parent))
    remove = partial(shutil.rmtree, folder, ignore_errors=True)
    with interrupt.cleanup_at_exit(remove):
        try:
            folder.mkdir(mode=0o700)
            yield folder
        finally:
            remove()
