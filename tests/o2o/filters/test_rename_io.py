"""rename.io.py renames tensors and what signatures call them."""

from __future__ import annotations

import numpy as np
import pytest

from o2o.contract import contract_of, role_of
from tests.o2o.filters.conftest import Command
from tests.o2o.graphs import decoder, feeds, linear, odd_names, run


def test_renames_in_graph_signature_and_contract(command: Command) -> None:
    model = decoder()
    given = feeds(model, model.graphs[1])
    before = run(model, given, model.graphs[1])
    after = command(model, "input", "input_ids=tokens", "cache_position=at")
    for graph in after.graphs:
        assert [value.name for value in graph.inputs] == ["tokens", "at", "past_key_0"]
        assert role_of(graph.inputs[0]).kind == "tokens"  # type: ignore[union-attr]
    for signature in after.signatures:
        assert list(signature.inputs) == ["tokens", "at", "past_key_0"]
    entries = contract_of(after)["signatures"]["decode"]["inputs"]
    assert entries[0] == {"name": "tokens", "role": "tokens", "dtype": "int64", "shape": [1, 1]}
    renamed = {"tokens": given["input_ids"], "at": given["cache_position"], "past_key_0": given["past_key_0"]}
    results = run(after, renamed, after.graphs[1])
    for name, array in before.items():
        np.testing.assert_array_equal(results[name], array)
    assert "prefill: input_ids is now tokens" in command.said


def test_names_may_change_places(command: Command) -> None:
    model = linear()
    given = feeds(model)
    before = run(model, given)
    after = command(model, "output", "y=z", "z=y")
    assert [value.name for value in after.graphs[0].outputs] == ["z", "y"]
    results = run(after, given)
    np.testing.assert_array_equal(results["z"], before["y"])
    np.testing.assert_array_equal(results["y"], before["z"])


def test_regex(command: Command) -> None:
    after = command(decoder(), "input", "--regex", r"past_(key|value)_(\d+)=cache_\2_\1", "input_(.*)=\\1")
    names = [value.name for value in after.graphs[0].inputs]
    assert names == ["ids", "cache_position", "cache_0_key"]
    assert after.history[-1]["arguments"][1] == "--regex"


def test_a_name_of_the_signature_counts_too(command: Command) -> None:
    after = command(odd_names(), "input", "args_same=x")
    assert after.graphs[0].inputs[0].name == "x"
    assert [list(signature.inputs) for signature in after.signatures] == [["x"], ["x"]]


def test_one_signature(command: Command) -> None:
    after = command(decoder(), "input", "input_ids=tokens", "--signature", "decode")
    assert [graph.inputs[0].name for graph in after.graphs] == ["input_ids", "tokens"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["output", "y=z"], 1, "'y' cannot become 'z': this is the name of another output"),
        (["output", "y=x"], 1, "'y' cannot become 'x': this is the name of another input"),
        (["output", "y=weight"], 1, "'y' cannot become 'weight': this is the name of a constant"),
        (["output", "--regex", ".=same"], 1, "'y' and 'z' would both become 'same'"),
        (["output", "--regex", "(y)?.*=\\1"], 1, "'z' would have no name"),
        (["output", "y=logits", "nope=a"], 2, "no output is called 'nope'; there are: y, z"),
        (["output", "--regex", "n.*=a"], 2, "no output matches 'n.*'; there are: y, z"),
        (["output", "y"], 2, "'y' is not OLD=NEW"),
        (["output", "y="], 2, "'y=' is not OLD=NEW"),
        (["output", "--regex", "(=a"], 2, "'(=a': missing ), unterminated subpattern at position 0"),
        (["output", "--regex", "y=\\3"], 2, "'\\\\3': invalid group reference 3 at position 1"),
    ],
)
def test_refusals(command: Command, arguments: list[str], code: int, message: str) -> None:
    assert command.refusal(linear(), *arguments) == (code, message)


def test_a_signature_with_two_names_for_one_tensor(command: Command) -> None:
    model = linear()
    model.signatures[0].outputs["again"] = model.graphs[0].outputs[0]
    code, message = command.refusal(model, "output", "y=new")
    assert (code, message) == (1, "two names in the signature of main would become equal")


def test_renames_separated_by_commas(command: Command) -> None:
    after = command(linear(), "output", "y=logits,z=hidden")
    assert [value.name for value in after.graphs[0].outputs] == ["logits", "hidden"]
    after = command(linear(), "output", "--regex", "y{1,2}=a,b")
    assert [value.name for value in after.graphs[0].outputs] == ["a,b", "z"]


def test_a_name_of_two_graphs_is_listed_once(command: Command) -> None:
    _, message = command.refusal(decoder(), "input", "nope=a")
    there = message.partition("there are: ")[2].split(", ")
    assert len(there) == len(set(there))
    assert "input_ids" in there
