"""The differences of metadata and history, as data for JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from o2o.model import Model

Json = dict[str, Any]


def metadata_changes(first: Model, second: Model) -> list[Json]:
    """Compare metadata, associated files and fields of two models.

    Args:
        first: A model.
        second: Another.

    Returns:
        The entries that differ.
    """
    before, after = _entries(first), _entries(second)
    return [
        {
            "name": name,
            "bytes": [len(side[name]) if name in side else None for side in (before, after)],
        }
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name)
    ]


def _entries(model: Model) -> dict[str, bytes]:
    counts: Counter[str] = Counter()
    entries: dict[str, bytes] = {}
    for name, data in _named_data(model):
        counts[name] += 1
        entries[name if counts[name] == 1 else f"{name} ({counts[name]})"] = data
    return entries


def _named_data(model: Model) -> Iterable[tuple[str, bytes]]:
    yield from model.metadata
    yield from ((f"file {file.info.filename}", file.data) for file in model.associated_files)
    for name, item in model.fields.items():
        yield f"field {name}", item if isinstance(item, bytes) else str(item).encode()


def history_changes(before: Sequence[Json], after: Sequence[Json]) -> Json:
    """Compare the histories of two models.

    Args:
        before: The commands that wrote the first model.
        after: Those of the second.

    Returns:
        How many of the first commands both share, and the others.
    """
    shared = next(
        (k for k, (a, b) in enumerate(zip(before, after, strict=False)) if a != b),
        min(len(before), len(after)),
    )
    return {"shared": shared, "removed": list(before[shared:]), "added": list(after[shared:])}
