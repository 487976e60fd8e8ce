"""The disk cache: files in the user's cache folder that later runs reuse.

    ~/.cache/o2o/<key>/...             an entry: files that belong together
    ~/.cache/o2o/<key>/entry.json      its source, label and aliases, and the size and times of each file
    ~/.cache/o2o/<key>.<random>/       an unfinished entry, locked by the process that writes it

An entry appears under its key when all its files are complete. An entry is removed when the size or a time
of one of its files has changed: reading gigabytes at each load would be slow. The least recently used
entries are removed when space is needed. A process that has mapped files of a removed entry keeps them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from o2o.streams.cache_folder import cache_folder

ENTRY = "entry.json"
MAX_ALIASES = 16
MAX_SHARE = 0.5
"""The share of the disk's free bytes that the cache may use; bytes of the cache count as free."""
_KEY = re.compile(r"[0-9a-f]{32}")
_PART = re.compile(_KEY.pattern + r"\.[a-z0-9_]{8}")
_SOURCE, _ALIASES, _FILES, _LABEL = "of", "aliases", "files", "label"  # names in entry.json


@dataclass(frozen=True)
class Entry:
    """An entry of the cache, for a list.

    Attributes:
        key: Its key.
        label: What it was made of, for people; empty if it is not known.
        size: Bytes of its files.
        last_use: When it was used last, in seconds since the epoch.
        intact: Whether no file has changed since it was written.
    """

    key: str
    label: str
    size: int
    last_use: float
    intact: bool


def user_cache() -> DiskCache | None:
    """Return the disk cache of the user.

    Returns:
        The cache in the user's cache folder (`o2o.streams.cache_folder`); None for a user without a home
        folder.
    """
    folder = cache_folder()
    return None if folder is None else DiskCache(folder)


class DiskCache:
    """The entries in a folder, which is created with the first one. Other files there stay unchanged.

    Keys are 32 hexadecimal digits.
    """

    def __init__(self, folder: Path, max_share: float = MAX_SHARE) -> None:
        self.folder = folder
        self.max_share = max_share

    def find_alias(self, alias: str) -> str | None:
        """Return the key of the entry with an alias.

        Args:
            alias: A name given to `add_alias`.

        Returns:
            The key; None when no entry has the alias.
        """
        if not self.folder.is_dir():
            return None
        for entry in self._matching(_KEY):
            if alias in _read_metadata(entry).get(_ALIASES, ()):
                return entry.name
        return None

    def add_alias(self, key: str, alias: str) -> None:
        """Give an entry an alias. Its oldest aliases are dropped. Errors of the file system are ignored.

        Args:
            key: The key of the entry.
            alias: The alias.
        """
        entry = self.folder / key
        metadata = _read_metadata(entry)
        aliases = [other for other in metadata.get(_ALIASES, ()) if other != alias]
        with contextlib.suppress(OSError):
            _write_metadata(entry, metadata | {_ALIASES: [*aliases, alias][-MAX_ALIASES:]})

    def get(self, key: str) -> Path | None:
        """Return the folder of an entry and mark it as used.

        Args:
            key: The key of the entry.

        Returns:
            The folder; None when there is no intact entry of that key.
        """
        entry = self.folder / key
        if not _is_intact(entry):
            if entry.exists():
                _remove(entry)
            return None
        with contextlib.suppress(OSError):
            os.utime(entry)
        return entry

    def entries(self) -> list[Entry]:
        """List the entries.

        Returns:
            The entries, the last used first.
        """
        if not self.folder.is_dir():
            return []
        entries = [
            Entry(
                entry.name,
                str(_read_metadata(entry).get(_LABEL, "")),
                _size(entry),
                _last_use(entry),
                _is_intact(entry),
            )
            for entry in self._matching(_KEY)
        ]
        return sorted(entries, key=lambda entry: entry.last_use, reverse=True)

    def files(self, name: str) -> list[Path]:
        """List the files of one name in all entries, which may be damaged.

        Args:
            name: The name.

        Returns:
            The files.
        """
        if not self.folder.is_dir():
            return []
        return [file for entry in self._matching(_KEY) if (file := entry / name).is_file()]

    def remove(self, key: str) -> None:
        """Remove an entry.

        Args:
            key: Its key.
        """
        _remove(self.folder / key)

    def clear(self) -> int:
        """Remove all entries, and unfinished ones of killed processes.

        Returns:
            The bytes of the removed entries.

        Raises:
            OSError: An entry cannot be removed.
        """
        entries = self.entries()
        for entry in entries:
            _remove(self.folder / entry.key, ignore_errors=False)
        if self.folder.is_dir():
            self._remove_abandoned()
        return sum(entry.size for entry in entries)

    @contextlib.contextmanager
    def add(self, key: str, source: str, size: int, label: str = "") -> Iterator[Path]:
        """Create an entry from the files that the block writes. On any error its files are removed.

        Args:
            key: The key of the new entry.
            source: Identifies the model of the files. Other entries of the same source are outdated,
                and are removed.
            size: About how many bytes the files take.
            label: What it is made of, for people.

        Yields:
            An empty folder for the files.

        Raises:
            OSError: Before the block: there is no space, or another process is writing the same entry.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._remove_abandoned()
        if any(self.folder.glob(f"{key}.*")):
            raise BlockingIOError(
                errno.EAGAIN, "another process is writing this cache entry", str(self.folder)
            )
        self._make_space(source, size)
        import tempfile  # slow to import, and not needed to load an entry

        part = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=self.folder))
        lock = os.open(part, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield part
            _complete(part, {_SOURCE: source, _LABEL: label})
            os.rename(part, self.folder / key)
        finally:
            _remove(part)
            os.close(lock)

    def _matching(self, pattern: re.Pattern[str]) -> list[Path]:
        return [path for path in self.folder.iterdir() if pattern.fullmatch(path.name)]

    def _remove_abandoned(self) -> None:
        """Remove unfinished entries of killed processes."""
        for part in self._matching(_PART):
            with contextlib.suppress(OSError):
                lock = os.open(part, os.O_RDONLY)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(part, ignore_errors=False)
                finally:
                    os.close(lock)

    def _make_space(self, source: str, size: int) -> None:
        """Remove entries until `size` bytes may be added. Raises OSError when that is impossible."""
        for entry in self._matching(_KEY):
            if _read_metadata(entry).get(_SOURCE) == source:
                _remove(entry)
        entries = {entry: _size(entry) for entry in self._matching(_KEY)}
        disk = os.statvfs(self.folder)
        limit = self.max_share * (disk.f_bavail * disk.f_frsize + sum(entries.values()))
        if size > limit:
            raise OSError(
                errno.ENOSPC, f"it needs {size:,} bytes, and the cache may use {limit:,.0f}", str(self.folder)
            )
        for entry in sorted(entries, key=_last_use):
            if sum(entries.values()) + size > limit:
                _remove(entry)
                del entries[entry]


def _remove(folder: Path, ignore_errors: bool = True) -> None:
    import shutil  # slow to import, and not needed to load an entry

    shutil.rmtree(folder, ignore_errors=ignore_errors)


def _read_metadata(entry: Path) -> dict[str, Any]:
    try:
        metadata = json.loads((entry / ENTRY).read_text())
        return metadata if isinstance(metadata, dict) else {}
    except (OSError, ValueError):
        return {}


def _complete(entry: Path, metadata: dict[str, Any]) -> None:
    """Flush the files to disk and write entry.json."""
    for file in entry.iterdir():
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
    _write_metadata(entry, metadata | {_FILES: _state(entry)})


def _write_metadata(entry: Path, metadata: dict[str, Any]) -> None:
    """Replace entry.json atomically: other processes may be reading it."""
    import tempfile

    handle, part = tempfile.mkstemp(prefix=".", dir=entry.parent)
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(metadata, file)
        os.replace(part, entry / ENTRY)
    except BaseException:
        os.unlink(part)
        raise


def _is_intact(entry: Path) -> bool:
    try:
        return _read_metadata(entry).get(_FILES) == _state(entry)
    except OSError:
        return False


def _state(entry: Path) -> dict[str, list[int]]:
    """For each file its size, and the times of its last write and last change in ns."""
    states = {file.name: file.stat() for file in entry.iterdir() if file.name != ENTRY}
    return {name: [state.st_size, state.st_mtime_ns, state.st_ctime_ns] for name, state in states.items()}


def _size(entry: Path) -> int:
    with contextlib.suppress(OSError):
        return sum(file.stat().st_size for file in entry.iterdir())
    return 0


def _last_use(entry: Path) -> float:
    with contextlib.suppress(OSError):
        return entry.stat().st_mtime
    return 0.0
