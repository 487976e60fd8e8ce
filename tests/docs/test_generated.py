"""Generated pages and pictures are current, and their parts are there."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from docs.tools import demo_model, layers
from docs.tools.generate import DOCS, files
from o2o import filters, verbs

FILES = files()


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_generated_file_is_current(name: str) -> None:
    assert (DOCS / name).read_text() == FILES[name], "run `python -m docs.tools.generate`, and commit docs"


def test_each_verb_has_a_section() -> None:
    for verb in verbs.verbs():
        assert f"\n### o2o {verb.name}\n\n```text\nusage: o2o {verb.name} " in FILES["command-line.md"]


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".svg")])
def test_a_picture_is_xml_and_has_dark_colors(name: str) -> None:
    picture = ElementTree.fromstring(FILES[name])
    assert picture.attrib["aria-label"]
    assert "prefers-color-scheme: dark" in FILES[name]
    for word in ("href", "url(http", "@import"):
        assert word not in FILES[name], "it loads something"


def test_the_picture_of_the_layers_has_every_module() -> None:
    for rows in layers.contracts().values():
        for module in (module for modules in rows for module in modules):
            assert f">{module}<" in FILES["layers.svg"]


@pytest.mark.parametrize("name", filters.names())
def test_the_page_of_a_filter_has_a_drawing(name: str) -> None:
    filter_ = filters.load(name)
    drawing = [line for line in (filter_.__doc__ or "").splitlines() if line.startswith("        ")]
    assert drawing, f"{filter_.name}: draw the graph before and after in the docstring"
    assert any("=>" in line for line in drawing)


def test_each_filter_that_changes_a_model_is_measured_on_the_demo_model() -> None:
    measured = {demo_model.name_of(command) for command in demo_model.COMMANDS}
    every = map(filters.load, filters.names())
    measured |= {"pack.litertlm.py"}  # it needs a tokenizer too
    assert measured == {filter_.name for filter_ in every if filter_.writes_model}
