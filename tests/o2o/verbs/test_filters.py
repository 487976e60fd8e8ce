"""`o2o filters` lists every filter once, under its purpose."""

from __future__ import annotations

import pytest

from o2o import filters
from o2o.verbs.filters import listing, main


def test_every_filter_is_listed_once() -> None:
    rows = [line.split() for line in listing().splitlines() if line.startswith("  ")]
    assert sorted(row[0] for row in rows) == sorted(filters.load(name).name for name in filters.names())
    assert all(len(row) > 3 for row in rows)


def test_headings_and_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kv CACHE"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "KV caches"
    names = ["bucket.kvcache.py", "transpose.io.kvcache.py", "window.kvcache.py"]
    assert [line.split()[0] for line in lines[1:]] == names
    assert main(["nothing like that"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "filters: no filter has 'nothing like that' in its line: `o2o filters` lists all\n"
