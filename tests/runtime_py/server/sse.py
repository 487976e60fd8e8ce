"""Server-sent events, read back."""

from __future__ import annotations

import json
from typing import Any


def events_of(text: str) -> list[Any]:
    """Return the objects of a stream. It must end with `[DONE]`."""
    *events, done, rest = text.split("\n\n")
    assert done == "data: [DONE]"
    assert rest == ""
    return [json.loads(event.removeprefix("data: ")) for event in events]
