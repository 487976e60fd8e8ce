"""Stored rows: keys and values of KV caches in files, as stored prompts and as saved slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from o2o.errors import ModelError, UsageError
from runtime_py.engines.cached_rows import CachedRows, RowsDoNotFit
from runtime_py.generation.prompt_cache import PromptCache
from runtime_py.generation.session import Session
from runtime_py.generation.session_pool import SessionPool


@dataclass(frozen=True)
class StoredRows:
    """Writes rows of the KV caches of one model to files, and reads them back.

    A slot is the number of KV caches of the pool, as llama.cpp's server numbers them.

    Attributes:
        pool: The KV caches.
        prompts: The stored prompts of the model.
    """

    pool: SessionPool
    prompts: PromptCache

    def remember(self, ids: Sequence[int], label: str = "", in_package: bool = False) -> Path:
        """Store the rows of a prompt, which is read first.

        Args:
            ids: Its token ids [P].
            label: What it is, for people; "" for the path of the model.
            in_package: Store them beside the model, and not in the disk cache.

        Returns:
            The file.

        Raises:
            ModelError: The rows of the model's caches cannot be stored.
            UsageError: The prompt is empty or does not fit; there is no disk cache.
            OSError: The file cannot be written.
        """
        with Session(self.pool) as session, session.generation():
            if not in_package and self.prompts.disk_cache is None:
                raise UsageError("there is no disk cache: store the prompt in the package")
            session.read(ids)
            rows = self._storable(session.rows())
        return self.prompts.add(ids, rows, label or self._model, in_package)

    def save(self, slot: int, file: Path) -> int:
        """Store the rows of a slot, which no text uses.

        Args:
            slot: The slot.
            file: The file to write.

        Returns:
            The number of rows.

        Raises:
            ModelError: The rows of the model's caches cannot be stored.
            UsageError: The slot is empty or in use, or there is none of this number.
            OSError: The file cannot be written.
        """
        with self.pool.hold(slot) as caches:
            tokens = [*caches.tokens]
            if not tokens:
                raise UsageError(f"slot {slot} is empty: generate a text in it first")
            rows = self._storable(caches.rows())
        self.prompts.save(file, tokens, rows, self._model)
        return len(tokens)

    def restore(self, slot: int, file: Path) -> int:
        """Read rows that `save` stored into a slot, which no text uses.

        Args:
            slot: The slot.
            file: The file.

        Returns:
            The number of rows.

        Raises:
            ModelError: The file is damaged, or belongs to another model or engine.
            UsageError: The slot is in use, or there is none of this number.
        """
        tokens, rows = self.prompts.load(file)
        try:
            with self.pool.hold(slot) as caches:
                caches.take(tokens, rows)
        except RowsDoNotFit as error:
            raise ModelError(f"{file}: {error}") from error
        return len(tokens)

    def erase(self, slot: int) -> int:
        """Drop the rows of a slot, which no text uses.

        Args:
            slot: The slot.

        Returns:
            The number of rows.

        Raises:
            UsageError: The slot is in use, or there is none of this number.
        """
        with self.pool.hold(slot) as caches:
            count, caches.tokens = len(caches.tokens), []
        return count

    @property
    def _model(self) -> str:
        return str(self.prompts.model.path.resolve())

    def _storable(self, rows: CachedRows | None) -> CachedRows:
        """Raise ModelError for no rows."""
        if rows is None:
            model = self.prompts.model.path
            raise ModelError(f"{model}: the caches of this model have no rows that can be stored")
        return rows
