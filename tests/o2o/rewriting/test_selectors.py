"""Positions and names from the command line; what a signature calls a tensor."""

from __future__ import annotations

import argparse

import pytest

from o2o.rewriting.selectors import ids, keep_signatures_in_step, names, set_ends
from tests.o2o.graphs import linear


def test_ids() -> None:
    assert ids("0,2-4, 7 ,3") == [0, 2, 3, 4, 7, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is neither a number nor a range; write 0,2-4"),
        ("1,,2", "'' is neither a number nor a range"),
        ("-1", "'-1' is neither a number nor a range"),
        ("a-b", "'a-b' is neither a number nor a range"),
        ("4-2", "the range 4-2 runs backwards"),
        ("0-99999999999", "the range 0-99999999999 is longer than any graph"),
    ],
)
def test_what_are_no_ids(text: str, message: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        ids(text)
    assert message in str(caught.value)


def test_names() -> None:
    assert names("a, b/c:0") == ["a", "b/c:0"]
    with pytest.raises(argparse.ArgumentTypeError):
        names("a,")


def test_new_ends_get_names_of_their_own_in_signatures() -> None:
    model = linear()
    graph, signature = model.graphs[0], model.signatures[0]
    y, z = graph.outputs
    signature.outputs = {"z": y, "first": z}
    weight = graph.initializers["weight"]
    weight.name = "z"
    set_ends(graph, "output", [weight, z, y])
    keep_signatures_in_step(model, graph)
    assert signature.outputs == {"first": z, "z": y}, "what it did not name it need not name now"
    keep_signatures_in_step(model, graph, name_all=True)
    assert signature.outputs == {"z_1": weight, "first": z, "z": y}
    assert list(signature.outputs) == ["z_1", "first", "z"]
