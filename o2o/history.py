"""What has been done to the model: one entry a filter, as JSON in the file.

    [{"filter": "fuse.attention.py", "arguments": [], "version": "0.1.0", "input": "sha256:3f..."}]

`input` is the SHA-256 of the metadata that the filter was given (a header-first file's header: the graph,
not the weights behind it), so that a history can be checked without reading gigabytes.
"""

from __future__ import annotations

import json
from typing import Any

from o2o import metadata
from o2o.errors import ModelError

METADATA_NAME = "o2o.history"
VERSION = 1


def dumps(history: list[dict[str, Any]]) -> bytes | None:
    return json.dumps(history, separators=(",", ":")).encode() if history else None


def loads(data: bytes) -> list[dict[str, Any]]:
    """Parse the history of a file: a list of objects, which has no version.

    Raises:
        ModelError: It is something else. An object with a version is a form that this module does not know.
    """
    with metadata.reports_damage(METADATA_NAME):
        history = json.loads(data)
    if isinstance(history, dict) and "version" in history:
        metadata.parse(METADATA_NAME, data, VERSION)
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise ModelError(f"its metadata {METADATA_NAME} is damaged: not a list of objects")
    return history
