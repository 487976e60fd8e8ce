"""The derived checkpoints that conversions store in the user's cache folder."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from o2o.weights.derived_checkpoint import FILE, changed_source

FOLDER = "checkpoints"
"""Its name in the cache folder."""
_NAME = re.compile(r"(?P<model>.*)-(?P<key>[0-9a-f]{12})", re.DOTALL)


@dataclass(frozen=True)
class CachedCheckpoint:
    """A derived checkpoint in the cache.

    Attributes:
        folder: Its folder, named after the model and `key`.
        model: The name of the model or of the adapter that it was made from.
        key: What identifies it.
    """

    folder: Path
    model: str
    key: str

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())

    @property
    def is_current(self) -> bool:
        """Whether it can be read, and the files that have its weights are as they were."""
        try:
            return changed_source(json.loads((self.folder / FILE).read_bytes())) is None
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def remove(self) -> None:
        """Remove its files.

        Raises:
            OSError: A file cannot be removed.
        """
        shutil.rmtree(self.folder)


def folder_name(model: str, identity: str) -> str:
    """Return the name of a derived checkpoint's folder.

    Args:
        model: The name of the model or of the adapter.
        identity: A hash of what it is made from, hexadecimal.

    Returns:
        The name.
    """
    return f"{model}-{identity[:12]}"


def cached_checkpoints(cache: Path) -> list[CachedCheckpoint]:
    """List the derived checkpoints in a cache folder.

    Args:
        cache: The cache folder, which need not exist.

    Returns:
        The checkpoints, by name. Folders that are not named like one are left out.
    """
    folder = cache / FOLDER
    if not folder.is_dir():
        return []
    matches = ((path, _NAME.fullmatch(path.name)) for path in sorted(folder.iterdir()) if path.is_dir())
    return [CachedCheckpoint(path, match["model"], match["key"]) for path, match in matches if match]
