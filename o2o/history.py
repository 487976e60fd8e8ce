"""The history of a model file: JSON metadata with one entry for each filter that changed the model.

    [{"filter": "fuse.attention.py", "arguments": [], "version": "0.1.0", "input": "sha256:3f..."}]

`input` is the fingerprint (`o2o.formats.fingerprint`) of the filter's input. It covers the graph but no large
constants, so a history can be checked without reading gigabytes.
"""

from __future__ import annotations

import json
from typing import Any

from o2o import metadata
from o2o.errors import ModelError

METADATA_NAME = "o2o.history"
VERSION = 1


def dumps(history: list[dict[str, Any]]) -> bytes | None:
    """Return the metadata entry of a history.

    Args:
        history: The entries, the oldest first.

    Returns:
        JSON; None for an empty history.
    """
    return json.dumps(history, separators=(",", ":")).encode() if history else None


def loads(data: bytes) -> list[dict[str, Any]]:
    """Parse the history of a file. It is a list and has no version.

    Args:
        data: The JSON text.

    Returns:
        The entries, the oldest first.

    Raises:
        ModelError: The text is not a list of objects, or a newer version wrote it.
    """
    with metadata.reports_damage(METADATA_NAME):
        history = json.loads(data)
    if isinstance(history, dict) and "version" in history:
        metadata.parse(METADATA_NAME, data, VERSION)
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise ModelError(f"its metadata {METADATA_NAME} is damaged: not a list of objects")
    return history
