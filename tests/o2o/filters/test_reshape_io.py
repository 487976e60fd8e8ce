"""reshape.io: shapes change at the ends, the meaning does not; what cannot keep it is refused."""

from __future__ import annotations

import argparse
import math

import hypothesis.strategies as st
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from o2o import formats
from o2o.contract import Role, contract_of, role_of
from o2o.filters.fuse_attention import FuseAttention
from o2o.filters.reshape_io import ReshapeIo
from o2o.model import CUSTOM_DOMAIN, Model, shape_of
from o2o.operators import reference
from tests.o2o import graphs
from tests.o2o.filters.conftest import Command
from tests.o2o.fused_graphs import Form, attention, feeds_at
from tests.o2o.graphs import (
    INT32,
    SAMPLES,
    Graph,
    conditional,
    exported_feeds,
    feeds,
    linear,
    operators,
    run,
    sign,
    weights,
)
from tests.tolerances import assert_close


def shapes(values: list[ir.Value]) -> list[list[int]]:
    return [list(value.shape.numpy()) for value in values]  # type: ignore[union-attr]


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Two shapes with as many elements."""
    old = draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4))
    total, new = math.prod(old), []
    for _ in range(draw(st.integers(0, 3))):
        new.append(draw(st.sampled_from([n for n in range(1, total + 1) if total % n == 0])))
        total //= new[-1]
    return old, [*new, total]


@settings(max_examples=60, deadline=None)
@given(shapes_=reshapes(), io=st.sampled_from(["input", "output"]))
def test_as_many_elements_keep_the_meaning(shapes_: tuple[list[int], list[int]], io: str) -> None:
    old, new = shapes_
    if old == new:
        return

    def build() -> Model:
        graph = Graph("main")
        x = graph.input("x", old)
        y = graph.op("MUL", [x, graph.constant("numbers", weights(*old))], old, name="y")
        graph.output(y, graph.op("NEG", [y], old, name="z"))
        return graph.model()

    before, after = build(), build()
    ReshapeIo().apply(after, argparse.Namespace(io=io, by_shape=[(tuple(old), tuple(new))]))
    after = formats.loads(formats.dumps(after))
    graph = after.graphs[0]
    assert shapes(graph.inputs) == [new if io == "input" else old]
    assert shapes(graph.outputs) == [new if io == "output" else old] * 2
    assert [value.name for value in graph.outputs] == ["y", "z"]
    given_ = feeds(before)
    expected = graphs.run(before, given_)
    reshaped = {name: array.reshape(shapes(graph.inputs)[0]) for name, array in given_.items()}
    for found in (graphs.run(after, reshaped), reference.run_graph(graph, reshaped)):
        for name, array in expected.items():
            assert_close(found[name].reshape(old), array)


def test_it_says_what_it_did(command: Command) -> None:
    after = command(linear(), "input", "--by_shape", "[2,4]", "[8]")
    assert command.said == "reshape.io.py: reshaped 1 input [2,4] to [8]\n"
    assert after.history[-1]["arguments"] == ["input", "--by_shape", "[2,4]", "[8]"]
    assert after.signatures[0].inputs["x"] is after.graphs[0].inputs[0]
    after = command(after, "output", "--by_shape", "[2,3]", "[3,2]")
    assert command.said == "reshape.io.py: reshaped 2 outputs [2,3] to [3,2]\n"


def test_several_shapes_at_once_and_one_after_the_other(command: Command) -> None:
    after = command(
        *(linear(), "output", "--by_shape", "[2,3]", "[6]", "--by_shape", "[6]", "[1,6]"),
    )
    assert shapes(after.graphs[0].outputs) == [[1, 6], [1, 6]]


def test_an_input_that_is_reshaped_anyway_gets_no_second_one(command: Command) -> None:
    graph = Graph("main")
    x = graph.input("x", [2, 3])
    to = graph.constant("to", np.int32([6]))
    graph.output(graph.op("NEG", [graph.op("RESHAPE", [x, to], [6])], [6], name="y"))
    after = command(graph.model(), "input", "--by_shape", "[2,3]", "[3,2]")
    assert operators(after) == {"RESHAPE": 1, "NEG": 1}
    assert shapes(after.graphs[0].inputs) == [[3, 2]]


def test_an_input_that_is_the_shape_of_a_reshape_is_not(command: Command) -> None:
    graph = Graph("main")
    x, to = graph.input("x", [2, 3]), graph.input("to", [2], INT32)
    graph.output(graph.op("RESHAPE", [x, to], [3, 2], name="y"))
    after = command(graph.model(), "input", "--by_shape", "[2]", "[1,2]")
    assert [shapes(node.inputs)[1] for node in after.graphs[0] if node.outputs[0].name == "y"] == [[2]]


def test_an_output_listed_twice_is_reshaped_once(command: Command) -> None:
    model = linear()
    graph = model.graphs[0]
    graph.outputs.append(graph.outputs[0])
    after = command(model, "output", "--by_shape", "[2,3]", "[6]")
    assert operators(after)["RESHAPE"] == 2
    assert [value.name for value in after.graphs[0].outputs] == ["y", "z", "y"]


def test_only_graphs_that_can_be_called(command: Command) -> None:
    """The branches of IF have inputs and outputs of that shape too, for IF alone."""
    before = conditional()
    after = command(before, "input", "--by_shape", "[3]", "[1,3]")
    assert [shapes(graph.inputs) for graph in after.graphs] == [[[1], [1, 3]], [[3]], [[3]], [[3]]]
    given_ = {"c": np.array([True]), "x": np.float32([[1, 2, 3]])}
    assert graphs.run(after, given_)["y"].tolist() == [2, 3, 4]
    after = command(after, "output", "--by_shape", "[3]", "[3,1]")
    assert graphs.run(after, given_)["y"].tolist() == [[2], [3], [4]]


def test_every_signature(command: Command) -> None:
    model = SAMPLES["decoder"]()
    after = command(model, "input", "--by_shape", "[1,2,8,4]", "[2,8,4]")
    assert command.said.count("reshaped 2 inputs") == 1
    assert all([2, 8, 4] in shapes(graph.inputs) for graph in after.graphs)
    contract = contract_of(after)["signatures"]
    for signature in contract.values():
        (cache,) = (entry for entry in signature["inputs"] if entry.get("role") == "key_cache")
        assert cache["shape"] == [2, 8, 4]
        assert "layout" not in cache, "its axes are no longer those that a layout names"


def test_roles_and_names_of_outputs_stay(command: Command) -> None:
    model = linear()
    model.graphs[0].outputs[0].meta["role"] = Role("logits")
    after = command(model, "output", "--by_shape", "[2,3]", "[1,2,3]")
    assert role_of(after.graphs[0].outputs[0]) == Role("logits")
    assert list(after.signatures[0].outputs) == ["y", "z"]


@pytest.mark.parametrize("io", ["input", "output"])
def test_what_quantized_numbers_stand_for_goes_with_them(command: Command, io: str) -> None:
    """int8 behind a RESHAPE without its scale would be taken for nothing, or refused."""
    graph = Graph("main")
    x = graph.input("x", [2, 3], ir.DataType.INT8)
    scales = graphs.per_channel([0.5])
    x.meta["fields"] = {"quantization": scales}
    y = graph.op(
        "QUANTIZE",
        [graph.op("NEG", [graph.op("DEQUANTIZE", [x], [2, 3], graphs.FLOAT)], [2, 3])],
        [2, 3],
        ir.DataType.INT8,
        "y",
    )
    y.meta["fields"] = {"quantization": scales}
    graph.output(y)
    after = command(graph.model(), io, "--by_shape", "[2,3]", "[6]")
    given_ = np.int8([[1, 2, 3], [4, 5, 6]])
    found = graphs.run(after, {"x": given_.reshape(-1) if io == "input" else given_})["y"]
    assert found.reshape(-1).tolist() == [-1, -2, -3, -4, -5, -6]


def test_what_is_quantized_by_channel_is_refused(command: Command) -> None:
    graph = Graph("main")
    x = graph.input("x", [2, 3], ir.DataType.INT8)
    x.meta["fields"] = {"quantization": graphs.per_channel([0.5, 0.25])}
    graph.output(graph.op("DEQUANTIZE", [x], [2, 3], graphs.FLOAT))
    code, said = command.refusal(graph.model(), "input", "--by_shape", "[2,3]", "[6]")
    assert (code, said) == (1, "x is quantized by channel or by block: its axes cannot be moved")


# --- caches ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["BNTH", "BTNH"])
@pytest.mark.parametrize("has_roles", [True, False])
@pytest.mark.parametrize("T", [1, 3])
def test_a_cache_of_attention_gets_more_rows(command: Command, layout: str, has_roles: bool, T: int) -> None:
    """Old positions give what they gave; new ones what a graph exported longer gives."""
    short, long = (Form(T=T, layout=layout, has_roles=has_roles, S=S) for S in (7, 12))
    old, new = ("[1,2,7,4]", "[1,2,12,4]") if layout == "BNTH" else ("[1,7,2,4]", "[1,12,2,4]")
    before, expected = attention(short), attention(long)
    after = command(before, "input", "--by_shape", old, new)
    assert formats.dumps(after).count(b"RESHAPE") == 0
    assert operators(after) == operators(before)
    for position in (0, 1, 7 - T, 7, 12 - T):
        given_ = feeds_at(after, position)
        copies = [{name: array.copy() for name, array in given_.items()} for _ in range(3)]
        found = reference.run_graph(after.graphs[0], copies[0])
        np.testing.assert_array_equal(found["y"], reference.run_graph(expected.graphs[0], copies[1])["y"])
        if position <= 7 - T:
            token = 2 if layout == "BNTH" else 1
            for name in ("past_key_0", "past_value_0"):
                copies[2][name] = copies[2][name].take(range(7), token)
            was = reference.run_graph(before.graphs[0], copies[2])
            assert_close(found["y"], was["y"])


def test_a_cache_that_two_attentions_share(command: Command) -> None:
    """Both must take it."""
    model = attention(Form(layout="BNTH"))
    graph = Graph("decode")
    graph.ir = model.graphs[0]
    (node,) = (node for node in graph.ir if node.op_type == "ATTENTION")
    graph.output(graph.op("ATTENTION", node.inputs, [1, 1, 5], name="again"))
    after = command(model, "input", "--by_shape", "[1,2,7,4]", "[1,2,9,4]")
    assert "reshaped 2 inputs" in command.said
    mask = Graph("decode")
    mask.ir = model.graphs[0]
    second = list(graph.ir)[-1]
    second.replace_input_with(7, mask.input("mask", [1, 1, 1, 7]))
    code, said = command.refusal(model, "input", "--by_shape", "[1,2,7,4]", "[1,2,9,4]")
    assert "ATTENTION has a mask mask for 7 rows" in said
    assert code == 1
    assert len(after.graphs[0].inputs) == 6


def test_a_cache_that_is_an_output_too_grows_as_both(command: Command) -> None:
    """TICO's adapter returns the caches that ATTENTION updates in place, and masks the final capacity."""
    model = attention(Form(layout="BNTH", mask=(1, 1, 1, 9)))
    graph = model.graphs[0]
    caches = [value for value in graph.inputs if (value.name or "").startswith("past_")]
    graph.outputs.extend(caches)
    (after,) = command(model, "input", "--by_shape", "[1,2,7,4]", "[1,2,9,4]").graphs
    assert [shape_of(value) for value in after.outputs[-2:]] == [(1, 2, 9, 4)] * 2
    assert after.outputs[-1] in after.inputs


def test_an_output_that_is_the_input_keeps_its_shape(command: Command) -> None:
    graph = Graph("main")
    x = graph.input("x", [2, 3])
    graph.output(x, graph.op("NEG", [x], [2, 3]))
    model = graph.model()
    after = command(model, "input", "--by_shape", "[2,3]", "[6]")
    assert [shape_of(value) for value in after.graphs[0].outputs] == [(2, 3), (2, 3)]
    given = feeds(model)
    expected = run(model, given)
    results = run(after, {"x": given["x"].reshape(6)})
    assert [array.tolist() for array in results.values()] == [array.tolist() for array in expected.values()]


def test_the_output_that_is_an_input_is_reshaped_alone(command: Command) -> None:
    graph = Graph("main")
    x = graph.input("x", [2, 3])
    graph.output(x, graph.op("NEG", [x], [2, 3]))
    after = command(graph.model(), "output", "--by_shape", "[2,3]", "[6]", "--check")
    assert shape_of(after.graphs[0].inputs[0]) == (2, 3)
    assert [shape_of(value) for value in after.graphs[0].outputs] == [(6,), (6,)]


def refusals() -> dict[str, tuple[Model, list[str], str]]:
    """What is refused: the model, the arguments, and a part of the message."""
    grow = ["input", "--by_shape", "[1,2,7,4]", "[1,2,9,4]"]
    found = {}
    found["heads"] = (
        attention(Form(layout="BNTH")),
        [*grow[:3], "[1,3,7,4]"],
        "only axis 2 of a ",
    )
    found["rank"] = (
        attention(Form(layout="BNTH")),
        [*grow[:3], "[2,9,4]"],
        "only axis 2 of a ",
    )
    found["no room"] = (
        attention(Form(T=3, layout="BNTH")),
        [*grow[:3], "[1,2,2,4]"],
        "writes 3 rows at a time",
    )
    masked = attention(Form(layout="BNTH", mask=(1, 7)))
    found["mask"] = masked, grow, "ATTENTION has a mask mask for 7 rows"
    found["ambiguous"] = (
        attention(Form(layout="BNTH", has_roles=False)),
        [*grow[:3], "[1,2,2,4]"],
        "is ambiguous",
    )
    found["other axes"] = (
        attention(Form(layout="BNTH", K=4)),
        ["input", "--by_shape", "[1,4,7,4]", "[1,7,4,4]"],
        "only axis 2 of a ",
    )

    one = attention(Form(layout="BNTH"))
    one.graphs[0].inputs[3].shape = ir.Shape([1, 2, 9, 4])
    found["one of two"] = one, [*grow[:3], "[1,2,8,4]"], "and past_value_0 [1,2,8,4]: reshape both"

    other = attention(Form(layout="BNTH"))
    graph = Graph("decode")
    graph.ir = other.graphs[0]
    graph.output(graph.op("NEG", [graph.ir.inputs[3]], [1, 2, 7, 4], name="negative"))
    found["another user"] = other, grow, "NEG negative needs the old shape"

    joined = Graph("main")
    past, new = joined.input("past", [1, 2, 7, 4]), joined.input("new", [1, 2, 1, 4])
    joined.output(joined.op("CONCATENATION", [past, new], [1, 2, 8, 4], axis=2, name="all"))
    found["concatenated"] = (
        joined.model(),
        grow,
        "CONCATENATION all needs the old shape; run fuse.attention.py first",
    )
    custom = Graph("main")
    past, y = custom.input("past", [1, 2, 7, 4]), custom.value("y", [1])
    custom.node("ATTENTION", [*[None] * 8, past], [y], domain=CUSTOM_DOMAIN)
    custom.output(y)
    found["custom"] = custom.model(), grow, "ATTENTION y needs the old shape"
    found["output"] = (
        linear(),
        ["output", "--by_shape", "[2,3]", "[2,4]"],
        "cannot reshape the output y [2, 3] to [2,4]",
    )
    return found


@pytest.mark.parametrize("which", refusals())
def test_refused(command: Command, which: str) -> None:
    model, arguments, reason = refusals()[which]
    code, said = command.refusal(model, *arguments)
    assert code == 1
    assert reason in said


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["input", "--by_shape", "[9,9]", "[81]"], "no input has the shape [9,9]; there are [2,4]"),
        (["output", "--by_shape", "[2,4]", "[8]"], "no output has the shape [2,4]; there are [2,3]"),
        (["input", "--by_shape", "[2,4]", "[2,4]"], "old and new shape are both [2,4]"),
        (["input", "--by_shape", "2,4", "[8]"], "'2,4' is not a shape such as [1,16,30,4]"),
        (["input", "--by_shape", "[2,4]", "[-8]"], "'[-8]' is not a shape such as [1,16,30,4]"),
        (["input"], "the following arguments are required: --by_shape"),
        (["sideways", "--by_shape", "[2,4]", "[8]"], "invalid choice: 'sideways'"),
    ],
)
def test_wrong_usage(command: Command, arguments: list[str], reason: str) -> None:
    code, said = command.refusal(linear(), *arguments)
    assert code == 2
    assert reason in said


@pytest.mark.parametrize(("io", "old"), [("input", [2, 4]), ("output", [2, 3])])
def test_a_shape_that_is_only_an_example(command: Command, io: str, old: list[int]) -> None:
    """The file may say that a runtime resizes the tensor: another example would not fit the graph."""
    model = linear()
    graph = model.graphs[0]
    for value in (*graph.inputs, *graph.outputs):
        value.meta["fields"] = {"shapeSignature": np.int32([-1, value.shape[1]])}  # type: ignore[index]
    code, said = command.refusal(model, io, "--by_shape", f"[{old[0]},{old[1]}]", f"[{old[0] * old[1]}]")
    assert code == 1
    assert "has no fixed shape" in said


def test_a_scalar(command: Command) -> None:
    graph = Graph("main")
    graph.output(graph.op("NEG", [graph.input("x", [1])], [1], name="y"))
    after = command(graph.model(), "input", "--by_shape", "[1]", "[]")
    assert shapes(after.graphs[0].inputs) == [[]]
    assert graphs.run(after, {"x": np.float32(3)})["y"].tolist() == [-3]


# --- exported -------------------------------------------------------------------------------------------


def test_the_guides_line_on_an_exported_graph(exported_model) -> None:
    """30 rows to 32: the same logits at every old position, and those of the form of 32 rows at the new."""
    model = formats.load(exported_model("demo", "concat"))
    FuseAttention().apply(model, argparse.Namespace(explain=False, assume_full_cache=None, core=False))
    short = formats.loads(formats.dumps(model))
    ReshapeIo().apply(model, argparse.Namespace(io="input", by_shape=[((1, 16, 30, 4), (1, 16, 32, 4))]))
    after = formats.loads(formats.dumps(model))
    for entry in contract_of(after)["signatures"]["decode"]["inputs"]:
        if entry["role"].endswith("_cache"):
            assert (entry["shape"], entry["layout"]) == ([1, 16, 32, 4], "BNTH")
    static = formats.load(exported_model("demo", "static"))
    for position in range(32):
        given_ = exported_feeds(static, position)
        expected = reference.run_graph(
            static.graphs[0], {name: array.copy() for name, array in given_.items()}
        )
        if position < 30:
            cut = {
                name: array[:, :, :30].copy() if array.ndim == 4 else array for name, array in given_.items()
            }
            was = reference.run_graph(short.graphs[0], cut)
            assert_close(was["logits"], expected["logits"])
        found = reference.run_graph(after.graphs[0], given_)
        assert_close(found["logits"], expected["logits"])
        for name, array in given_.items():
            if array.ndim == 4:
                assert_close(array, expected[name.replace("past", "present")])


def test_a_concatenated_export_says_what_to_do_first(command: Command, exported_model) -> None:
    model = formats.load(exported_model("demo", "concat"))
    code, said = command.refusal(model, "input", "--by_shape", "[1,16,30,4]", "[1,16,32,4]")
    assert code == 1
    assert said.endswith("run fuse.attention.py first")


def test_a_second_signature_of_one_graph(command: Command) -> None:
    model = linear()
    sign(model, model.graphs[0], "again", public="public_{}")
    after = command(model, "input", "--by_shape", "[2,4]", "[8]")
    assert [shapes(list(s.inputs.values())) for s in after.signatures] == [[[8]], [[8]]]
    after = command(after, "output", "--by_shape", "[2,3]", "[6]")
    assert [list(s.outputs) for s in after.signatures] == [["y", "z"], ["public_y", "public_z"]]
    assert [shapes(list(s.outputs.values())) for s in after.signatures] == [[[6], [6]]] * 2
