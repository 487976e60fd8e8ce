"""The prompt cache: rows of keys and values of prompts, stored on disk, in the package or in the disk cache.

    <folder of the model>/prompt_cache/<key>.safetensors
    ~/.cache/o2o/<key>/prompt.safetensors                   an entry of the disk cache

A file has the token ids, and the rows of each cache in the layout [T, K, H]. Its metadata are the digest of
the model, the engine, and the digest of the content.

A prompt uses the file that begins with the most of its ids. The model must have the same bytes. Rows of
float32 weights are used on all engines, others only on the engine that computed them, which rounds alike.
Files with a wrong digest are not used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from o2o.errors import ModelError
from o2o.streams.disk_cache import DiskCache
from o2o.streams.temporary import temporary_folder
from runtime_py.engines.cached_rows import CachedRows
from runtime_py.engines.model_file import ModelFile, file_identity
from runtime_py.engines.prepared_artifacts import cache_key
from runtime_py.generation.common_prefix import num_shared
from runtime_py.model.window_size import WindowSize

FOLDER = "prompt_cache"
"""The folder beside a model with its stored prompts."""
FILE = "prompt.safetensors"
"""The file of an entry of the disk cache."""
SUFFIX = ".safetensors"
VERSION = "1"
MAX_BYTES = 4_000_000_000
"""The most bytes of stored prompts in the disk cache. Those used least recently are removed first."""
SAME_ON_ALL_ENGINES = "float32"
"""The dtype of weights whose rows all engines compute alike, except for rounding in the last bits."""
_IDS = "ids"


@dataclass(frozen=True)
class StoredPrompt:
    """A stored prompt, as the header of its file describes it.

    Attributes:
        file: The file.
        ids: Token ids [P].
        lowest: See `CachedRows.lowest`.
        metadata: The metadata of the file.
    """

    file: Path
    ids: Sequence[int]
    lowest: int
    metadata: Mapping[str, str]

    def read(self) -> CachedRows:
        """Read the rows.

        Returns:
            The rows.

        Raises:
            ModelError: The file is damaged.
        """
        try:
            with safe_open(self.file, "numpy") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{self.file}: {error}") from error
        if _digest(self.metadata, tensors) != self.metadata.get("digest"):
            raise ModelError(f"{self.file}: its digest is wrong")
        ids = tensors.pop(_IDS)
        return CachedRows(len(ids), self.lowest, tensors)


@dataclass
class PromptCache:
    """The stored prompts of one model on one engine. Any thread may use it.

    Attributes:
        model: The model's file.
        engine: The name of the engine.
        weight_dtype: Returns the dtype of its weights, `Engine.weight_dtype`, for which an ONNX file is read.
        disk_cache: The disk cache; None to use none.
        log: Called with one line for a damaged file.
    """

    model: ModelFile
    engine: str
    weight_dtype: Callable[[], str]
    disk_cache: DiskCache | None = None
    log: Callable[[str], None] = lambda line: None
    _known: dict[Path, tuple[list[int], StoredPrompt | None]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The folder of stored prompts beside the model."""
        return self.model.path.parent / FOLDER

    @property
    def _identity(self) -> str:
        return json.dumps(self.model.identity)

    def find(
        self, ids: Sequence[int], enough: int, window: WindowSize | None
    ) -> tuple[CachedRows, int] | None:
        """Find the stored prompt with the longest common prefix.

        Args:
            ids: Token ids [P] of a prompt.
            enough: The smallest number of rows that helps.
            window: The size of the model's window caches; None if it has none.

        Returns:
            Its rows, and how many of them the prompt can use, below P; None for no prompt.
        """
        candidates = []
        for stored in self._stored():
            count = num_shared(ids, stored.ids)
            seen = max(0, count - window.window + 1) if window is not None else 0
            if count >= enough and stored.lowest <= seen and self._suits(stored):
                candidates.append((count, stored))
        for count, stored in sorted(candidates, key=lambda item: item[0], reverse=True):
            if not self._is_of_this_model(stored) or not self._is_intact(stored.file):
                continue
            try:
                return stored.read(), count
            except ModelError as error:
                self.log(f"a stored prompt is damaged, and not used: {error}")
                self._known[stored.file] = (self._known[stored.file][0], None)
        return None

    def add(self, ids: Sequence[int], rows: CachedRows, label: str, in_package: bool = False) -> Path:
        """Store a prompt. It replaces the same prompt of the same model and engine.

        Args:
            ids: Token ids [P].
            rows: The rows of all of them.
            label: What it is, for people.
            in_package: Store it beside the model, and not in the disk cache.

        Returns:
            The file.

        Raises:
            OSError: It cannot be written.
        """
        key = cache_key([VERSION, self.model.digest, self.engine, list(ids)])
        tensors, metadata = self._content(ids, rows, label)
        if in_package:
            self.folder.mkdir(exist_ok=True)
            file = self.folder / f"{key}{SUFFIX}"
            _write(file, tensors, metadata)
            return file
        assert self.disk_cache is not None
        size = sum(tensor.nbytes for tensor in tensors.values())
        self._make_room(size)
        with self.disk_cache.add(key, key, size, f"prompt: {label}") as entry:
            save_file(tensors, entry / FILE, metadata)
        return self.disk_cache.folder / key / FILE

    def save(self, file: Path, ids: Sequence[int], rows: CachedRows, label: str) -> None:
        """Write a file of a prompt.

        Args:
            file: The file, in an existing folder.
            ids: Token ids [P].
            rows: The rows of all of them.
            label: What it is, for people.

        Raises:
            OSError: It cannot be written.
        """
        _write(file, *self._content(ids, rows, label))

    def load(self, file: Path) -> tuple[Sequence[int], CachedRows]:
        """Read a file of a prompt.

        Args:
            file: The file.

        Returns:
            The ids [P] and the rows.

        Raises:
            ModelError: It is damaged, or belongs to another model or engine.
        """
        if (stored := _read_header(file)) is None:
            raise ModelError(f"{file} is damaged, or no file of a prompt")
        rows = stored.read()
        if not (self._suits(stored) and self._is_of_this_model(stored)):
            raise ModelError(f"{file} belongs to another model or engine")
        return stored.ids, rows

    def _content(
        self, ids: Sequence[int], rows: CachedRows, label: str
    ) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """The tensors and the metadata of a file."""
        metadata = {
            "version": VERSION,
            "model": self.model.digest,
            "identity": self._identity,
            "engine": self.engine,
            "weights": self.weight_dtype(),
            "lowest": str(rows.lowest),
            "label": label,
        }
        tensors = {**rows.tensors, _IDS: np.array(ids, np.int32)}
        metadata["digest"] = _digest(metadata, tensors)
        return tensors, metadata

    def _make_room(self, size: int) -> None:
        """Remove stored prompts from the disk cache until `size` bytes more are below the limit."""
        assert self.disk_cache is not None
        keys = {file.parent.name for file in self.disk_cache.files(FILE)}
        entries = [entry for entry in self.disk_cache.entries() if entry.key in keys]
        while entries and sum(entry.size for entry in entries) + size > MAX_BYTES:
            self.disk_cache.remove(entries.pop().key)

    def _stored(self) -> Iterator[StoredPrompt]:
        """All stored prompts, of any model. Headers are read once."""
        files = [*self.folder.glob(f"*{SUFFIX}")]
        if self.disk_cache is not None:
            files += self.disk_cache.files(FILE)
        for file in files:
            with contextlib.suppress(OSError):
                identity = file_identity(file)
                known = self._known.get(file)
                if known is None or known[0] != identity:
                    known = self._known[file] = (identity, _read_header(file))
                if known[1] is not None:
                    yield known[1]

    def _suits(self, stored: StoredPrompt) -> bool:
        """Whether rows have the bits, or almost, that this engine computes."""
        of, weights = stored.metadata.get("engine"), stored.metadata.get("weights")
        return of == self.engine or weights == self.weight_dtype() == SAME_ON_ALL_ENGINES

    def _is_of_this_model(self, stored: StoredPrompt) -> bool:
        """Whether it was computed by a model with the same bytes. The same file is not digested again."""
        of = stored.metadata
        return of.get("identity") == self._identity or of.get("model") == self.model.digest

    def _is_intact(self, file: Path) -> bool:
        """Whether the disk cache, if the file is there, says that it has not changed. Marks it as used."""
        cache = self.disk_cache
        if cache is None or file.parent.parent != cache.folder:
            return True
        return cache.get(file.parent.name) is not None


def _write(file: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write a file, which has its name when it is complete."""
    with temporary_folder(file.parent, ".") as part:
        save_file(tensors, part / FILE, metadata)
        os.replace(part / FILE, file)


def _read_header(file: Path) -> StoredPrompt | None:
    """Read the header of a file; None if it is damaged."""
    try:
        with safe_open(file, "numpy") as opened:
            metadata = opened.metadata() or {}
            ids = opened.get_tensor(_IDS)
        if metadata.get("version") != VERSION or ids.dtype != np.int32 or ids.ndim != 1:
            return None
        return StoredPrompt(file, ids.tolist(), int(metadata["lowest"]), metadata)
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> str:
    """The digest of all that a file says, except for the digest itself."""
    digest = hashlib.sha256()
    described: list[Any] = [sorted((key, value) for key, value in metadata.items() if key != "digest")]
    for name in sorted(tensors):
        tensor = tensors[name]
        described.append([name, str(tensor.dtype), tensor.shape])
        digest.update(tensor.reshape(-1).view(np.uint8).data)
    digest.update(json.dumps(described).encode())
    return digest.hexdigest()
