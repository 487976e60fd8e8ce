"""Output folders that receive all files of a command, or none."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from o2o.cli import interrupt
from o2o.streams.temporary import temporary_folder


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
    remove = partial(_remove_empty, created)
    with interrupt.cleanup_at_exit(remove):
        try:
            target.mkdir(parents=True, exist_ok=True)
            with temporary_folder(target, ".build-") as folder:
                yield folder
        except BaseException:
            remove()
            raise


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()  # fails if another process has put files there, which must stay


def publish(staged: Path, target: Path, names: Iterable[str]) -> None:
    """Move files to their place, replacing older ones.

    Args:
        staged: The folder they are in.
        target: The folder they belong to.
        names: The files' names, in the order of moving.
    """
    for name in names:
        os.replace(staged / name, target / name)
