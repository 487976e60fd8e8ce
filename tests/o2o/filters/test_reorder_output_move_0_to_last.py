"""reorder.output.move_0_to_last.py makes the first output the last."""

from __future__ import annotations

from tests.o2o.filters.conftest import Command
from tests.o2o.graphs import assert_same_results, decoder, feeds, quantized, run


def test_moves_it_in_every_graph(command: Command) -> None:
    model = decoder()
    given = feeds(model)
    before = run(model, given)
    after = command(model)
    assert [list(signature.outputs) for signature in after.signatures] == [["key_0", "logits"]] * 2
    assert_same_results({name: before[name] for name in ("key_0", "logits")}, run(after, given))


def test_one_output_cannot_move(command: Command) -> None:
    assert command.refusal(quantized()) == (2, "nothing to move: no graph has more than one output")


def test_the_order_of_the_graph_counts(command: Command) -> None:
    """A signature may list its outputs in another order, by name for example."""
    model = decoder()
    for signature in model.signatures:
        signature.outputs = dict(reversed(signature.outputs.items()))
    after = command(model, "--check")
    assert [list(signature.outputs) for signature in after.signatures] == [["key_0", "logits"]] * 2
