"""fuse.rope: every spelling becomes ROPE and means the same; nothing else does."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o2o import formats
from o2o.contract import contract_of
from o2o.model import CUSTOM_DOMAIN, Model
from o2o.operators import reference
from tests.o2o.filters.conftest import Command
from tests.o2o.graphs import Graph, assert_means_the_same, exported_feeds, operators
from tests.tolerances import assert_close


@dataclass(frozen=True)
class Form:
    """One spelling of the rotation of x [B, N, T, H]; table_rows rows in the tables [1, 1, rows, H]."""

    slicing: str = "STRIDED_SLICE"  # SLICE, SPLIT
    negation: str = "NEG"  # MUL
    swapped: bool = False  # the other order of operands in sums and products
    shape: tuple[int, int, int, int] = (2, 3, 5, 4)
    table_rows: int = 5
    broken: str = ""


FORMS = [
    Form(slicing, negation, swapped)
    for slicing, negation, swapped in itertools.product(
        ("STRIDED_SLICE", "SLICE", "SPLIT"), ("NEG", "MUL"), (False, True)
    )
]

NOT_ROTATED = "no term of the sum is a rotated half times a table"
BROKEN = {
    "halves swapped": NOT_ROTATED,
    "other half negated": NOT_ROTATED,
    "not negated": NOT_ROTATED,
    "negated by half": NOT_ROTATED,
    "upper half too short": NOT_ROTATED,
    "lower half from 1": NOT_ROTATED,
    "every other": NOT_ROTATED,  # GPT-J: neighbors are pairs
    "odd head": NOT_ROTATED,
    "fewer heads": NOT_ROTATED,
    "another axis": NOT_ROTATED,
    "halves of two tensors": NOT_ROTATED,
    "another tensor rotated": NOT_ROTATED,
    "three parts": NOT_ROTATED,
    "tables by head": "a rotation table should be [1, 1, 5, 4]",
    "tables by batch": "a rotation table should be [1, 1, 5, 4]",
    "a table of numbers": "a rotation table should be [1, 1, 5, 4]",
    "rank 3": "ROPE takes a tensor of four axes",
    "activation of the sum": "ADD has a fused activation",
    "activation of cos": "MUL has a fused activation",
    "activation of sin": "MUL has a fused activation",
    "activation of rotated_half": "CONCATENATION has a fused activation",
    "activation of negation": "MUL has a fused activation",
    "custom product": "each term of a rotation should come from MUL",
}


def build(form: Form) -> Model:
    broken, graph = form.broken, Graph("main")
    shape = list(form.shape)
    if broken == "rank 3":
        shape = shape[1:]
    if broken == "odd head":
        shape[-1] = 5
    rank, H = len(shape), shape[-1]
    half = H // 2
    x = graph.input("x", shape)

    def op(kind: str, operands: list[ir.Value], shape: list[int], where: str, **attributes: int) -> ir.Value:
        if form.swapped and kind in ("ADD", "MUL"):
            operands = operands[::-1]
        if broken == f"activation of {where}":
            attributes["fusedActivationFunction"] = 1
        return graph.op(kind, operands, shape, name=where, **attributes)

    def part(source: ir.Value, axis: int, begin: int, end: int, step: int = 1) -> ir.Value:
        """source[begin:end:step] over `axis`, all of it over the others."""
        source_shape = [int(dim) for dim in source.shape.numpy()]  # type: ignore[union-attr]
        begins, ends, steps = [0] * rank, list(source_shape), [1] * rank
        begins[axis], ends[axis], steps[axis] = begin, end, step
        if broken == "fewer heads":
            ends[rank - 3] -= 1
        size = [-(-(e - b) // s) for b, e, s in zip(begins, ends, steps, strict=True)]
        if form.slicing == "SLICE":
            bounds = [begins, size]
        else:
            bounds = [
                begins,
                [99 if e == dim else e for e, dim in zip(ends, source_shape, strict=True)],
                steps,
            ]
        constants = [graph.constant("bounds", np.int32(numbers)) for numbers in bounds]
        return graph.op(form.slicing, [source, *constants], size)

    axis = rank - 2 if broken == "another axis" else rank - 1
    if form.slicing == "SPLIT":
        count = 3 if broken == "three parts" else 2
        halves = [graph.value(f"part{k}", [*shape[:-1], H // count]) for k in range(count)]
        graph.node(
            "SPLIT",
            [graph.constant("axis", np.int32(-1)), x],
            halves,
            [ir.AttrInt64("numSplits", count)],
        )
        lower, upper = halves[0], halves[1]
    elif broken == "every other":
        lower, upper = part(x, axis, 0, H, 2), part(x, axis, 1, H, 2)
    elif broken == "another axis":
        lower, upper = part(x, axis, 0, 2), part(x, axis, 2, shape[axis])
    else:
        other = graph.input("x2", shape) if broken == "halves of two tensors" else x
        lower = part(
            x, axis, 1 if broken == "lower half from 1" else 0, half + (broken == "lower half from 1")
        )
        upper = part(other, axis, half + (broken == "upper half too short"), H)
    if broken == "halves swapped":
        lower, upper = upper, lower

    def negated(y: ir.Value) -> ir.Value:
        size = list(y.shape.numpy())  # type: ignore[union-attr]
        if broken == "not negated":
            return y
        if form.negation == "NEG":
            return graph.op("NEG", [y], size)
        number = np.float32(-0.5 if broken == "negated by half" else -1)
        return op("MUL", [y, graph.constant("minus", number)], size, "negation")

    parts = [upper, negated(lower)] if broken == "other half negated" else [negated(upper), lower]
    if broken == "three parts":
        parts.append(halves[2])
    rotated_shape = list(shape)
    rotated_shape[axis] = sum(int(p.shape[axis]) for p in parts)  # type: ignore[index, arg-type]
    if broken == "fewer heads":
        rotated_shape[rank - 3] -= 1
    rotated_half = op("CONCATENATION", parts, rotated_shape, "rotated_half", axis=axis)
    rows = form.table_rows
    table_shape = {
        "tables by head": [1, shape[1], rows, H],
        "tables by batch": [shape[0], 1, rows, H],
        "a table of numbers": [rows, H],
        "rank 3": [1, rows, H],
    }.get(broken, [1, 1, rows, H])
    cos, sin = graph.input("cos", table_shape), graph.input("sin", table_shape)
    straight = graph.input("x2", shape) if broken == "another tensor rotated" else x
    first = op("MUL", [straight, cos], shape, "cos")
    if broken == "custom product":
        second = graph.value("custom", shape)
        graph.node("MUL", [rotated_half, sin], [second], domain=CUSTOM_DOMAIN)
        first = op("MUL", [rotated_half, sin], shape, "sin")  # near enough to be looked at
    else:
        second = op("MUL", [rotated_half, sin], shape, "sin")
    y = op("ADD", [first, second], shape, "the sum")
    y.name = "y"
    graph.output(y)
    return graph.model()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.slicing} {form.negation} {form.swapped}")
def test_every_spelling_is_fused_and_means_the_same(command: Command, form: Form) -> None:
    before = build(form)
    after = command(before)
    assert command.said == "fuse.rope.py: main: fused 1 rotation\n"
    assert operators(after) == {"ROPE": 1}
    assert [value.name for value in after.graphs[0][0].inputs if value] == ["x", "sin", "cos"]
    assert after.history[-1]["filter"] == "fuse.rope.py"
    assert_means_the_same(before, after)


@settings(max_examples=25, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    shape=st.tuples(*[st.integers(1, 4)] * 3, st.sampled_from([2, 4, 6])),
    one_row=st.booleans(),
)
def test_any_size(form: Form, shape: tuple[int, int, int, int], one_row: bool) -> None:
    from o2o.filters.fuse_rope import FuseRope

    form = replace(form, shape=shape, table_rows=1 if one_row else shape[2])
    before, after = build(form), build(form)
    filter_ = FuseRope()
    filter_.apply(after, filter_.parser().parse_args([]))
    assert operators(after) == {"ROPE": 1}
    assert_means_the_same(before, after)


SPELLING = {
    "negated by half": Form(negation="MUL"),
    "activation of negation": Form(negation="MUL"),
    "three parts": Form(slicing="SPLIT", shape=(2, 3, 5, 6)),
    "another axis": Form(shape=(2, 3, 4, 4), table_rows=4),
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("swapped", [False, True])
def test_a_near_miss_is_left_alone_and_explained(command: Command, broken: str, swapped: bool) -> None:
    before = build(replace(SPELLING.get(broken, Form()), swapped=swapped, broken=broken))
    after = command(before, "--explain")
    assert operators(after)["ROPE"] == 0
    assert "left 1 candidate alone" in command.said
    assert BROKEN[broken] in command.said


def test_a_sum_without_concatenation_is_no_candidate(command: Command) -> None:
    graph = Graph("main")
    x = graph.input("x", [1, 1, 2, 4])
    graph.output(graph.op("ADD", [graph.op("MUL", [x, x], [1, 1, 2, 4]), x], [1, 1, 2, 4]))
    command(graph.model(), "--explain")
    assert command.said == "fuse.rope.py: main: fused 0 rotations\n"


def test_a_table_may_be_computed_from_what_is_rotated(command: Command) -> None:
    """x * x + ...: the tables are operands like any other."""
    before = build(Form(shape=(1, 1, 5, 4)))
    nodes = {node.outputs[0].name: node for node in before.graphs[0]}
    nodes["cos"].replace_input_with(1, before.graphs[0].inputs[0])
    after = command(before)
    assert operators(after) == {"ROPE": 1}
    assert_means_the_same(before, after)


@pytest.mark.parametrize("form", ["prefill", "concat", "static"])
@pytest.mark.parametrize("shape", ["demo", "grouped"])
def test_exported_graphs_have_two_rotations_a_layer(
    command: Command, exported_model, shape: str, form: str
) -> None:
    before, again = (formats.load(exported_model(shape, form)) for _ in range(2))
    after = command(before)
    assert operators(after)["ROPE"] == 2 * operators(again)["SOFTMAX"]
    assert contract_of(after) == contract_of(again)
    given = exported_feeds(again, position=5)
    expected = reference.run_graph(again.graphs[0], given)
    values = reference.run_graph(after.graphs[0], given)
    assert_close(values["logits"], expected["logits"])
