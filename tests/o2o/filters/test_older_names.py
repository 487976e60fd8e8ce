"""Commands of earlier versions of ONE's tools run the filters of today."""

from __future__ import annotations

import tomllib

import pytest

from o2o import filters
from tests.conftest import ROOT


@pytest.mark.parametrize(("older", "today"), filters.OLDER_NAMES.items())
def test_an_older_name_is_a_command(older: str, today: str) -> None:
    module = filters.find(older)
    assert module is not None
    assert module == filters.find(today)
    assert filters.load(module).name == today
    assert f"Older name: {older}." in (filters.load(module).__doc__ or "")
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts[older] == "o2o.__main__:script"
