"""What the pages of the filters say about the demo model is what the filters print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from docs.tools import demo_model
from tests.test_guide import guided  # noqa: F401 - a fixture

RESULTS = json.loads(demo_model.RESULTS.read_text())


@pytest.mark.parametrize("command", demo_model.COMMANDS, ids=demo_model.name_of)
def test_a_filter_prints_what_its_page_says(guided: Path, command: str) -> None:  # noqa: F811
    result = RESULTS[demo_model.name_of(command)]
    assert result["command"] == command, "run `python -m docs.tools.demo_model FOLDER`"
    assert demo_model.measure(command, guided) == result["messages"]
