"""bucket.kvcache: decode in several capacities, in the file."""

from __future__ import annotations

import pytest

from o2o.contract import contract_of
from o2o.lower.litert import lower_to_litert
from tests.o2o.filters.conftest import Command
from tests.o2o.fused_graphs import Form, attention
from tests.o2o.language_model_graphs import language_model
from tests.o2o.lower.litert.test_lowering import decode_of


@pytest.mark.parametrize("lowered", [True, False])
def test_new_signatures_beside_the_old(command: Command, exported_model, lowered: bool) -> None:
    model = decode_of(exported_model, "grouped", "concat", "BNTH")
    after = command(lower_to_litert(model) if lowered else model, "--capacities", "16,8", "--check")
    assert command.said.splitlines()[0] == (
        "bucket.kvcache.py: added decode_8, decode_16; decode has 32 positions"
    )
    found = {
        name: {entry["shape"][2] for entry in signature["inputs"] if "layer" in entry}
        for name, signature in contract_of(after)["signatures"].items()
    }
    assert found == {"decode": {32}, "decode_8": {8}, "decode_16": {16}}
    assert after.history[-1]["arguments"] == ["--capacities", "16,8"]
    assert command.refusal(after) == (1, "decode has buckets already: decode_8, decode_16")


def test_nothing_smaller_than_what_is_small(command: Command) -> None:
    model = attention(Form(layout="BNTH"))
    after = command(model)
    assert command.said == ("bucket.kvcache.py: decode has a capacity of 7: there is no smaller one to add\n")
    assert (len(after.graphs), after.history) == (1, [])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--capacities", "4,7"], "--capacities: 7 must be above 0 and below decode's own capacity 7"),
        (["--capacities", "4,x"], "argument --capacities: '4,x' is not a list of numbers"),
        (["--capacities", "0"], "--capacities: 0 must be above 0 and below decode's own capacity 7"),
    ],
)
def test_wrong_capacities(command: Command, arguments: list[str], expected: str) -> None:
    code, message = command.refusal(attention(Form(layout="BNTH")), *arguments)
    assert (code, expected in message) == (2, True), message


def test_no_decode(command: Command) -> None:
    code, message = command.refusal(language_model((4,), ("prefill_4",)))
    assert (code, message) == (
        1,
        "no decode signature has KV caches in the o2o.contract: merge one with merge.circles.py",
    )


def test_a_decode_that_computes_with_all_rows(command: Command) -> None:
    code, message = command.refusal(language_model((1,), ("decode",)), "--capacities", "4")
    assert code == 1
    assert message.startswith(
        "decode cannot be computed with fewer rows: rows are summed without softmax weights"
    )
