"""Questions about nodes of a model."""

from __future__ import annotations

from o2o.model import inner_graphs
from tests.o2o.graphs import conditional


def test_inner_graphs() -> None:
    node = conditional().graphs[0][0]
    assert [graph.name for graph in inner_graphs(node)] == ["then", "else"]
