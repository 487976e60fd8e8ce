"""reorder.output.py puts outputs in another order, in graphs and signatures."""

from __future__ import annotations

import pytest

from tests.o2o.filters.conftest import Command
from tests.o2o.graphs import assert_same_results, decoder, feeds, linear, run, sign


@pytest.mark.parametrize("selector", [["--by_name", "z,y"], ["--by_id", "1,0"]])
def test_reorders_graph_and_signature(command: Command, selector: list[str]) -> None:
    model = linear()
    sign(model, model.graphs[0], "other", public="args_{}")
    given = feeds(model)
    before = run(model, given)
    after = command(model, *selector)
    assert_same_results({name: before[name] for name in ("z", "y")}, run(after, given))
    assert [list(s.outputs) for s in after.signatures] == [["z", "y"], ["args_z", "args_y"]]


def test_every_graph_or_one(command: Command) -> None:
    for arguments, orders in (
        ([], [["key_0", "logits"], ["key_0", "logits"]]),
        (["--signature", "decode"], [["logits", "key_0"], ["key_0", "logits"]]),
    ):
        after = command(decoder(), "--by_name", "key_0,logits", *arguments)
        assert [[value.name for value in graph.outputs] for graph in after.graphs] == orders


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--by_id", "0"], "the new order of main lacks output 1 (z); remove.io.py removes outputs"),
        (["--by_id", "0,1,1"], "output 1 (z) of main is named 2 times"),
        (["--by_id", "0-2"], "main has no output 2; the last one is 1 (z)"),
        (["--by_name", "z,nope"], "main has no output 'nope'; there are: y, z"),
        ([], "one of the arguments --by_name --by_id is required (--help explains)"),
    ],
)
def test_refusals(command: Command, arguments: list[str], message: str) -> None:
    assert command.refusal(linear(), *arguments) == (2, message)
