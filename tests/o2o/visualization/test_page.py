"""The page of a model: complete, escaped, and without anything from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from o2o import formats
from o2o.visualization.page import page
from tests.o2o.graphs import SAMPLES, Graph, decoder
from tests.o2o.language_model_graphs import language_model

VOID = {"meta", "br", "path", "rect"}


class Reader(HTMLParser):
    """Checks that tags are closed, and collects texts and attributes."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(document)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"{data}\n"


@pytest.mark.parametrize("sample", sorted(SAMPLES))
def test_every_kind_of_model(sample: str) -> None:
    model = formats.loads(formats.dumps(SAMPLES[sample]()))
    reader = Reader(page(model, "model.circle", 1234))
    assert "1,234 bytes" in reader.text
    for graph in model.graphs:
        assert model.label(graph) in reader.text
        for node in graph:
            assert node.op_type in reader.text
    assert not reader.tags & {"script", "link", "img", "iframe", "object"}
    assert not {name for name, _ in reader.attributes} & {"src", "href", "srcset", "action", "data"}


def test_it_loads_nothing() -> None:
    document = page(language_model(), "model.circle", 1)
    assert not re.search(r"https?://|url\(|@import", document)
    assert "default-src 'none'" in document


def test_names_are_escaped() -> None:
    evil = "<script>alert(1)</script>&\"'"
    graph = Graph(evil)
    x = graph.input(evil, [2])
    graph.output(graph.op("ABS", [x], [2], name=f"y{evil}"))
    model = graph.model()
    model.metadata = [(evil, b"1")]
    model.history = [{"filter": evil, "arguments": [evil]}, {"merged": evil, "history": []}]
    document = page(model, evil, None)
    assert "<script" not in document
    assert document.count("&lt;script&gt;alert(1)") > 8
    Reader(document)


def test_the_contract_and_the_history() -> None:
    model = decoder()
    model.history = [{"filter": "gc.py", "arguments": ["--x", "a b"], "version": "1"}]
    text = Reader(page(model, "model.circle", None)).text
    assert "gc.py --x 'a b'" in text
    for word in ("key_cache", "BNTH", "prefill: 5 roles", "Largest tensors", "head"):
        assert word in text
