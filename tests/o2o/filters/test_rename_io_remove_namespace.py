"""rename.io.remove_namespace.py removes all before the last `::`."""

from __future__ import annotations

from o2o.model import Model
from tests.o2o.filters.conftest import Command
from tests.o2o.graphs import Graph, linear, sign


def from_tico(names: tuple[str, str]) -> Model:
    graph = Graph("main")
    x, y = (graph.input(name, [2]) for name in names)
    graph.output(graph.op("ADD", [x, y], [2], name="torch.Linear::a::linear_24"))
    model = graph.model()
    model.signatures.clear()
    sign(model, graph.ir)
    return model


def test_names_of_graphs_and_signatures(command: Command) -> None:
    after = command(from_tico(("tico::input_ids", "plain")))
    assert [value.name for value in after.graphs[0].inputs] == ["input_ids", "plain"]
    assert [*after.signatures[0].outputs] == ["linear_24"]
    assert "removed the namespace from 2 names" in command.said


def test_refused(command: Command) -> None:
    code, message = command.refusal(linear())
    assert (code, message) == (2, "no input or output has a name with `::`")
    code, message = command.refusal(from_tico(("a::x", "b::x")))
    assert code != 0
