"""Proofs of masks: quick for long prompts, and still true."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from o2o.model import Model, shape_of
from o2o.operators.reference import NotEvaluable
from o2o.rewriting.attention import causality
from o2o.rewriting.attention.causality import Keys, at_position, prove_causal, prove_start
from o2o.rewriting.attention.proofs import Proofs
from o2o.rewriting.matchers import MatchFailure
from tests.o2o.attention_graphs import Form, build
from tests.o2o.graphs import INT64, Graph
from tests.o2o.mutations import mutate


def mask_of(model: Model) -> ir.Value:
    (softmax,) = (node for node in model.graphs[0] if node.op_type == "SOFTMAX")
    mask = softmax.inputs[0].producer().inputs[1]  # type: ignore[union-attr]
    assert mask is not None
    return mask


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each value was computed."""
    count: Counter[str] = Counter()

    compute = causality.AtPosition.__call__

    def counted(self: causality.AtPosition, position: int) -> np.ndarray:
        count[self.value.name or ""] += 1
        return compute(self, position)

    monkeypatch.setattr(causality.AtPosition, "__call__", counted)
    return count


@pytest.mark.parametrize("position_per_token", [False, True])
@pytest.mark.parametrize("mask_form", ["rows", "table"])
def test_each_row_is_computed_about_once(
    evaluated: Counter[str], mask_form: str, position_per_token: bool
) -> None:
    mask = mask_of(
        build(Form(T=8, join="slice", past=36, mask_form=mask_form, position_per_token=position_per_token))
    )
    prove_causal(mask, Keys(8, 36, appended=False))
    assert evaluated[mask.name or ""] == 5  # at 0, 8, 16, 24 and 28


def test_a_mask_that_does_not_go_by_tokens_is_computed_at_every_position(evaluated: Counter[str]) -> None:
    mask = mask_of(build(Form(T=8, join="slice", past=36, mask_form="slots")))
    prove_causal(mask, Keys(8, 36, appended=False))
    assert evaluated[mask.name or ""] == 29


@pytest.mark.parametrize("row", [0, 7, 8, 35])
def test_one_wrong_row_is_found_wherever_it_is(row: int) -> None:
    model = build(Form(T=8, join="slice", past=36, mask_form="table"))
    table = model.graphs[0].initializers["table"]
    numbers = table.const_value.numpy().copy()  # type: ignore[union-attr]
    numbers[row, 0] = -1e9
    table.const_value = ir.Tensor(numbers, name="table")
    with pytest.raises(MatchFailure, match="not causal at position"):
        prove_causal(mask_of(model), Keys(8, 36, appended=False))


@pytest.mark.parametrize("change", ["steps", "slots"])
def test_tokens_that_do_not_count_up(change: str) -> None:
    """Right where each token stands at first, and wrong where it comes to stand."""
    model = build(Form(T=4, join="slice", past=12, mask_form="rows", rotate=False))
    graph = model.graphs[0]
    if change == "steps":  # twice the position, from the same tokens
        (add,) = graph.initializers["steps"].consumers()
        more = Graph("")
        more.ir = graph
        twice = more.op("ADD", [graph.inputs[1], graph.inputs[1]], [1], INT64)
        add.replace_input_with(0, twice)
        graph.sort()
    else:  # compared with other slots token by token
        keys = graph.initializers["keys"]
        numbers = np.tile(np.arange(12), (4, 1))
        numbers[1, 7] = 8
        keys.const_value = ir.Tensor(numbers, name="keys")
        keys.shape = ir.Shape([4, 12])
    with pytest.raises(MatchFailure, match="not causal at position"):
        prove_causal(mask_of(model), Keys(4, 12, appended=False))


def test_what_is_said_to_go_by_tokens_does() -> None:
    """On masks with random changes."""
    proven = 0
    for seed in range(300):
        draw = random.Random(seed)
        T = draw.choice([2, 3])
        keys = Keys(T, draw.choice([T, 5, 7]), appended=False)
        mask_form, position_per_token = draw.choice(["slots", "rows", "table"]), draw.random() < 0.3
        model = build(
            Form(
                T=T, join="slice", past=keys.past, mask_form=mask_form, position_per_token=position_per_token
            )
        )
        mask = mask_of(model)
        only(model.graphs[0], mask)
        for _ in range(draw.choice([0, 1, 2, 3])):
            mutate(model, draw)
        try:
            leaf = causality.position_leaf(mask, "the mask")
            if (
                leaf is None
                or leaf.name != "position"
                or not causality.depends_on_token_positions(mask, leaf, keys)
            ):
                continue
            rows: dict[int, np.ndarray] = {}
            for position in keys.positions:
                numbers = at_position(mask, leaf, position, "the mask")
                if numbers.shape != shape_of(mask):
                    break
                for token in range(T):
                    row = rows.setdefault(position + token, numbers[..., token, :])
                    np.testing.assert_array_equal(numbers[..., token, :], row, err_msg=f"{seed}")
            proven += 1
        except (MatchFailure, NotEvaluable):
            continue
    assert proven > 50


def only(graph: ir.Graph, mask: ir.Value) -> None:
    """Leave nothing in `graph` but what computes `mask`."""
    needed: set[ir.Node] = set()
    waiting = [mask.producer()]
    while waiting:
        if (node := waiting.pop()) is not None and node not in needed:
            needed.add(node)
            waiting += [value.producer() for value in node.inputs if value is not None]
    graph.outputs.clear()
    graph.remove([node for node in graph if node not in needed], safe=True)
    graph.outputs.append(mask)


def test_layers_share_their_proofs(evaluated: Counter[str]) -> None:
    model = build(Form(T=2, join="slice", past=9))
    graph = model.graphs[0]
    starts = {node.inputs[2] for node in graph if node.op_type == "DYNAMIC_UPDATE_SLICE"}
    proofs = Proofs()
    keys = Keys(2, 9, appended=False)
    for start in starts:
        for _ in range(3):
            proofs.once(prove_start, start, keys, 2)
    for _ in range(3):
        proofs.once(prove_causal, mask_of(model), keys)
    assert set(evaluated.values()) == {8}
