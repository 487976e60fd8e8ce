"""What was done to a model travels in it."""

from __future__ import annotations

import pytest

from o2o import formats, history
from o2o.errors import ModelError
from tests import schemas
from tests.o2o.graphs import linear
from tests.schemas import ENTRY


def test_it_travels_in_the_file() -> None:
    model = linear()
    model.history = [{**ENTRY, "arguments": ["ü"]}, ENTRY]
    back = formats.loads(formats.dumps(model))
    assert back.history == model.history
    assert history.METADATA_NAME not in dict(back.metadata), "it is not kept twice"


def test_a_model_without_one() -> None:
    assert history.dumps([]) is None
    assert history.METADATA_NAME.encode() not in formats.dumps(linear())


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"nope", b"\xff"])
def test_damage(data: bytes) -> None:
    with pytest.raises(ModelError, match=r"its metadata o2o\.history is damaged"):
        history.loads(data)


def test_a_newer_version_is_refused() -> None:
    with pytest.raises(ModelError, match=r"o2o\.history has version 2; this o2o knows 1: update o2o"):
        history.loads(b'{"version": 2}')


def test_its_schema_takes_entries_and_histories_of_merged_models() -> None:
    validator = schemas.validator("history")
    assert validator.is_valid([{"merged": "decode.circle", "history": [ENTRY]}, ENTRY])
    for wrong in ([], [{"filter": "a.py"}], [{**ENTRY, "date": "today"}], [{**ENTRY, "input": "sha256:1"}]):
        assert not validator.is_valid(wrong)
