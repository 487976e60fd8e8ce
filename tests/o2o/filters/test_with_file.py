"""with.py passes a model on."""

from __future__ import annotations

from o2o import formats
from o2o.filters.with_file import WithFile
from tests.o2o.filters.conftest import Command
from tests.o2o.graphs import decoder


def test_the_model_stays_as_it_is(command: Command) -> None:
    model = decoder()
    data = formats.dumps(model)
    after = command(model)
    assert formats.dumps(after) == data
    assert after.history == []
    assert WithFile.name == "with.py"
