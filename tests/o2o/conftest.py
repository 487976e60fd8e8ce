"""For all tests of `o2o`: what they write matches its JSON Schema."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

from tests import schemas


@pytest.fixture(autouse=True, scope="session")
def metadata_matches_its_schema() -> Iterator[None]:
    if importlib.util.find_spec("jsonschema") is None:  # `test_contract` fails then
        yield
        return
    with schemas.checked():
        yield
