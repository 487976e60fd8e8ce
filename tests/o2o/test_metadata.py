"""Versioned metadata: damage and newer versions are refused."""

from __future__ import annotations

import pytest

from o2o import metadata
from o2o.errors import ModelError


def test_an_object_of_a_known_version() -> None:
    assert metadata.parse("o2o.x", b'{"version": 1, "a": 2}', 1) == {"version": 1, "a": 2}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": "1"}', b"\xff"])
def test_damage(text: str | bytes) -> None:
    with pytest.raises(ModelError, match=r"^its metadata o2o\.x is damaged"):
        metadata.parse("o2o.x", text, 1)


def test_a_newer_version() -> None:
    with pytest.raises(metadata.NewerVersion, match=r"^its o2o\.x has version 3; this o2o knows 2"):
        metadata.parse("o2o.x", '{"version": 3}', 2)
