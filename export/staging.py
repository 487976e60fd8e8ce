"""Output folders that receive all files of a command, or none."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from o2o.cli import interrupt


@contextlib.contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """Make a temporary folder inside `target`, in the same file system.

    It is removed with all its files. If the block fails, folders that were created for it are removed too.

    Args:
        target: The output folder; created if it does not exist.

    Yields:
        The temporary folder.
    """
    created = [folder for folder in (target, *target.parents) if not folder.exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(prefix=".build-", dir=target) as folder,
            interrupt.cleanup_at_exit(lambda: _remove(Path(folder), created)),
        ):
            yield Path(folder)
    except BaseException:
        _remove(None, created)
        raise


def _remove(folder: Path | None, parents: Iterable[Path]) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    for parent in parents:
        with contextlib.suppress(OSError):
            parent.rmdir()  # fails if another process has put files there, which must stay


def publish(staged: Path, target: Path, names: Iterable[str]) -> None:
    """Move files to their place, replacing older ones.

    Args:
        staged: The folder they are in.
        target: The folder they belong to.
        names: The files' names, in the order of moving.
    """
    for name in names:
        os.replace(staged / name, target / name)
