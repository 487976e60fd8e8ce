"""Links in README and docs lead somewhere: to files that exist, and to headings that exist."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tinyllama").rglob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href|srcset)=\"([^\"]+)\"")


def links(text: str) -> list[str]:
    without_code = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    without_code = re.sub(r"`[^`\n]*`|^ {4}.*$", "", without_code, flags=re.M)
    return [first or second for first, second in LINK.findall(without_code)]


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and Python-Markdown make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def problem(page: Path, link: str) -> str:
    if re.match(r"[a-z]+:", link):
        return ""
    name, _, anchor = link.partition("#")
    target = (page.parent / name).resolve() if name else page
    if not target.exists():
        return f"{link}: no such file"
    if anchor and target.suffix == ".md" and anchor not in anchors(target):
        return f"{link}: no such heading"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert [found for link in links(page.read_text()) if (found := problem(page, link))] == []


def test_pages_link_only_to_pages() -> None:
    """The site has the folder docs alone."""
    for page in (ROOT / "docs").rglob("*.md"):
        for link in links(page.read_text()):
            if not re.match(r"[a-z]+:", link):
                assert (page.parent / link.partition("#")[0]).resolve().is_relative_to(ROOT / "docs"), link


def test_a_broken_link_is_a_problem(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A title: of words\n[a](page.md#a-title-of-words) [b](other.md) [c](#no) `[d](no.md)`")
    assert links(page.read_text()) == ["page.md#a-title-of-words", "other.md", "#no"]
    assert [problem(page, link) for link in links(page.read_text())] == [
        "",
        "other.md: no such file",
        "#no: no such heading",
    ]


def test_each_page_is_in_the_navigation() -> None:
    navigation = re.findall(r": ([\w./-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} | {"filters/README.md"}
    assert sorted(navigation) == sorted(pages)
