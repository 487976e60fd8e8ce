"""Files worth keeping from one run to the next, in the user's cache folder.

    ~/.cache/o2o/<key>/...             an entry: files that were made together
    ~/.cache/o2o/<key>/entry.json      what they are of, other names for the key, the size and times of each
    ~/.cache/o2o/<key>.<random>/       an entry in the making, locked by the process that makes it

An entry appears under its key when it is complete, with all that is in it. One of which a file has been
touched since is thrown away: who uses such files cannot check gigabytes each time. Those not used for the
longest go when room is needed. Processes that still have files of theirs mapped keep them as they are.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

ENTRY = "entry.json"
_KEY = re.compile(r"[0-9a-f]{32}")
_PART = re.compile(_KEY.pattern + r"\.[a-z0-9_]{8}")
ALIASES = 16
SHARE = 0.5
"""Of the disk's free bytes, those in the cache among them: how many the cache may take."""


def user_cache() -> Cache | None:
    """In $O2O_CACHE, else in o2o in the user's cache folder ($XDG_CACHE_HOME, ~/.cache); None for a user
    without a home."""
    if named := os.environ.get("O2O_CACHE"):
        return Cache(Path(named))
    # A relative path there is to be ignored, says the specification.
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return Cache((base if base.is_absolute() else Path.home() / ".cache") / "o2o")
    except RuntimeError:
        return None


class Cache:
    """The entries in `folder`, which is made when the first comes. What else lies there is left alone.

    Keys are 32 hexadecimal digits.
    """

    def __init__(self, folder: Path, share: float = SHARE) -> None:
        self.folder = folder
        self.share = share

    def key_of(self, alias: str) -> str | None:
        """The key of the entry that `also` gave this other name; None when there is none."""
        if not self.folder.is_dir():
            return None
        return next((e.name for e in self._named(_KEY) if alias in _told(e).get("aliases", ())), None)

    def also(self, key: str, alias: str) -> None:
        """Let `key_of` know the entry `key` by another name, too. The oldest names of an entry are forgotten.
        Does nothing where that cannot be written."""
        entry = self.folder / key
        told = _told(entry)
        aliases = [other for other in told.get("aliases", ()) if other != alias]
        with contextlib.suppress(OSError):
            _tell(entry, told | {"aliases": [*aliases, alias][-ALIASES:]})

    def find(self, key: str) -> Path | None:
        """The folder of the entry `key`, which counts as used now; None when there is none that is intact."""
        entry = self.folder / key
        if not _is_intact(entry):
            shutil.rmtree(entry, ignore_errors=True)
            return None
        with contextlib.suppress(OSError):
            os.utime(entry)
        return entry

    @contextlib.contextmanager
    def add(self, key: str, of: str, size: int) -> Iterator[Path]:
        """A folder for files of about `size` bytes in all, which becomes the entry `key` with this block's
        success; on any error nothing is left.

        of: what the files are made of; entries of the same are out of date, and go. Raises OSError, before
        the block, when there is no room for it, or when another process is at it.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._remove_abandoned()
        if any(self.folder.glob(f"{key}.*")):
            raise BlockingIOError(errno.EAGAIN, "another process is at it", str(self.folder))
        self._make_room(of, size)
        part = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=self.folder))
        lock = os.open(part, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield part
            _complete(part, of)
            os.rename(part, self.folder / key)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            os.close(lock)

    def _named(self, pattern: re.Pattern[str]) -> list[Path]:
        return [path for path in self.folder.iterdir() if pattern.fullmatch(path.name)]

    def _remove_abandoned(self) -> None:
        """What processes that were killed had begun."""
        for part in self._named(_PART):
            with contextlib.suppress(OSError):
                lock = os.open(part, os.O_RDONLY)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(part)
                finally:
                    os.close(lock)

    def _make_room(self, of: str, size: int) -> None:
        """Remove entries until `size` bytes may be added. Raises OSError when that is too much anyway."""
        for entry in self._named(_KEY):
            if _told(entry).get("of") == of:
                shutil.rmtree(entry, ignore_errors=True)
        entries = {entry: _size(entry) for entry in self._named(_KEY)}
        free = os.statvfs(self.folder)
        most = self.share * (free.f_bavail * free.f_frsize + sum(entries.values()))
        if size > most:
            raise OSError(
                errno.ENOSPC, f"it takes {size:,} bytes where {most:,.0f} may be used", str(self.folder)
            )
        for entry in sorted(entries, key=_last_use):
            if sum(entries.values()) + size > most:
                shutil.rmtree(entry, ignore_errors=True)
                del entries[entry]


def _told(entry: Path) -> dict:
    try:
        told = json.loads((entry / ENTRY).read_text())
        return told if isinstance(told, dict) else {}
    except (OSError, ValueError):
        return {}


def _complete(entry: Path, of: str) -> None:
    """See the files safely to the disk, and write down what they are like."""
    for file in entry.iterdir():
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
    _tell(entry, {"of": of, "files": _state(entry)})


def _tell(entry: Path, told: dict) -> None:
    """Replace what is written down, at once: others may be reading."""
    handle, part = tempfile.mkstemp(prefix=".", dir=entry.parent)
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(told, file)
        os.replace(part, entry / ENTRY)
    except BaseException:
        os.unlink(part)
        raise


def _is_intact(entry: Path) -> bool:
    try:
        return _told(entry).get("files") == _state(entry)
    except OSError:
        return False


def _state(entry: Path) -> dict[str, list[int]]:
    """Of each file: size, and when it was last written and last changed in any way, in ns."""
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
