"""The pages under docs/filters are what `python -m o2o.docs` makes of the filters as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from o2o import docs, filters


@pytest.mark.parametrize("name", sorted(docs.pages()))
def test_a_page_is_up_to_date(name: str) -> None:
    assert (docs.DIRECTORY / name).read_text() == docs.pages()[name], (
        "run `make docs` and commit docs/filters"
    )


def test_there_is_a_page_for_every_filter_and_no_other() -> None:
    names = {f"{filters.load(name).name}.md" for name in filters.names()}
    assert {path.name for path in docs.DIRECTORY.iterdir()} == names | {"README.md"}


def test_writes_pages_and_clears_old_ones(tmp_path: Path) -> None:
    (tmp_path / "old.md").write_text("of a filter that is no more")
    (tmp_path / "picture.png").write_text("not ours")
    assert docs.main([str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {*docs.pages(), "picture.png"}


def test_the_width_of_the_terminal_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = docs.pages()
    monkeypatch.setenv("COLUMNS", "40")
    assert docs.pages() == pages
