"""A region means the same inside a composite, and nothing else changes."""

from __future__ import annotations

import flatbuffers.flexbuffers
import numpy as np
import onnx_ir as ir
import pytest

from o2o import formats
from o2o.contract import Role, role_of
from o2o.formats.tensors import storage_key
from o2o.model import DOMAIN, Model, attribute, shape_of
from o2o.rewriting.matchers import MatchFailure
from o2o.rewriting.outline import COMPOSITE, decompositions, nodes_between, outline
from tests.o2o import graphs
from tests.o2o.graphs import FLOAT, Graph, feeds, sign, weights


def chain() -> Model:
    """a = x + w, b = |a|, c = b * w2, y = c + b; `w` is used outside, too."""
    graph = Graph("main")
    x, w = graph.input("x", [2, 3]), graph.constant("w", weights(3))
    a = graph.op("ADD", [x, w], [2, 3], name="a")
    b = graph.op("ABS", [a], [2, 3], name="b")
    c = graph.op("MUL", [b, graph.constant("w2", weights(3, seed=1))], [2, 3], name="c")
    graph.output(graph.op("ADD", [c, graph.op("SUB", [b, w], [2, 3], name="d")], [2, 3], name="y"))
    return graph.model()


def values(model: Model) -> dict[str, ir.Value]:
    graph = model.graphs[0]
    actual = [*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)]
    return {value.name or "": value for value in actual}


def wrap(
    model: Model, inputs: list[str], outputs: list[str], *, name: str = "my.op", **attributes: float
) -> ir.Node:
    of = values(model)
    ends = [of[name] for name in inputs], [of[name] for name in outputs]
    nodes = nodes_between(*ends)
    return outline(model, model.graphs[0], nodes, *ends, name, attributes)


def assert_same(before: Model, after: Model) -> None:
    after = formats.loads(formats.dumps(after))
    for graph in before.graphs[:1]:
        given = feeds(before, graph)
        graphs.assert_same_results(graphs.run(before, given), graphs.run(after, given))


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        (["x"], ["a"]),
        (["x"], ["b"]),
        (["a"], ["b"]),
        (["a"], ["b", "c"]),
        (["b", "w2"], ["c"]),
        (["x"], ["y"]),
    ],
)
def test_a_region_means_the_same(inputs: list[str], outputs: list[str]) -> None:
    before, after = chain(), chain()
    node = wrap(after, inputs, outputs)
    (inner,) = decompositions(after)
    assert after.graphs == [after.graphs[0], inner]
    assert [value.name for value in node.inputs if value is not None] == inputs
    assert [value.name for value in node.outputs] == outputs
    assert [node.op_type for node in after.graphs[0]].count(COMPOSITE) == 1
    assert len(after.graphs[0]) + len(inner) == len(before.graphs[0]) + 1
    assert_same(before, after)


def test_name_version_and_attributes() -> None:
    """Floats are float32, as who reads them in place expects (XNNPACK does)."""
    model = chain()
    of = values(model)
    nodes = nodes_between([of["a"]], [of["b"]])
    attributes: dict[str, float | int | bool | str] = {"scale": 0.1, "axis": 2, "fast": True, "kind": "soft"}
    outline(model, model.graphs[0], nodes, [of["a"]], [of["b"]], "my.op", attributes, version=3)
    model = formats.loads(formats.dumps(model))
    (node,) = (node for node in model.graphs[0] if node.op_type == COMPOSITE)
    assert attribute(node, "name") == "my.op"
    assert attribute(node, "version") == 3
    data = bytes(attribute(node, "compositeAttributes"))
    actual = flatbuffers.flexbuffers.Loads(data)
    assert actual == {**attributes, "scale": np.float32(0.1)}
    scale = flatbuffers.flexbuffers.GetRoot(data).AsMap["scale"]
    assert scale.IsFloat
    assert np.float32(0.1).tobytes() in data
    assert np.float64(0.1).tobytes() not in data


def test_constants_of_the_region_move_and_shared_ones_share_their_bytes() -> None:
    model = chain()
    wrap(model, ["x"], ["y"])
    (inner,) = decompositions(model)
    assert set(model.graphs[0].initializers) == set()
    model = chain()
    wrap(model, ["x"], ["c", "b"])
    main, inner = model.graphs
    assert set(main.initializers) == {"w"}
    (own,) = (value for value in inner.initializers.values() if value.name != "w2")
    assert storage_key(own.const_value) == storage_key(main.initializers["w"].const_value)  # type: ignore[arg-type]
    assert len(formats.dumps(model)) < 2 * len(formats.dumps(chain()))
    again = formats.loads(formats.dumps(model))
    keys = [storage_key(v.const_value) for g in again.graphs for v in g.initializers.values()]  # type: ignore[arg-type]
    assert len(keys) == 3
    assert len(set(keys)) == 2, "the file has one buffer for it"


def test_a_constant_may_be_an_operand() -> None:
    """As the weight of a norm is: delegates look for it among the composite's operands."""
    model = chain()
    node = wrap(model, ["b", "w2"], ["c"])
    assert node.inputs[1] is model.graphs[0].initializers["w2"]
    (inner,) = decompositions(model)
    assert not inner.initializers
    assert [shape_of(value) for value in inner.inputs] == [(2, 3), (3,)]


def test_an_operand_may_come_twice() -> None:
    """Keys that are values, too."""
    before, after = chain(), chain()
    node = wrap(after, ["b", "b", "w2"], ["c"])
    assert len(node.inputs) == 3
    assert_same(before, after)


def test_names_are_told_apart() -> None:
    """Quantizers ask for names that are unique in the whole file."""
    model = chain()
    wrap(model, ["a"], ["b"])
    wrap(model, ["b", "w2"], ["c"])
    model = formats.loads(formats.dumps(model))
    names = [
        value.name
        for graph in model.graphs
        for value in (*graph.inputs, *graph.initializers.values(), *(v for n in graph for v in n.outputs))
    ]
    assert len(names) == len(set(names))
    assert [graph.name for graph in model.graphs] == ["main", "my.op.impl_0", "my.op.impl_1"]


def test_outputs_keep_their_role_signature_and_quantization() -> None:
    model = chain()
    graph = model.graphs[0]
    y = graph.outputs[0]
    y.meta["role"] = Role("logits")
    sign(model, graph, "again", public="out_{}")
    node = wrap(model, ["x"], ["y"])
    (new,) = node.outputs
    assert graph.outputs[0] is new
    assert role_of(new) == Role("logits")
    assert [list(s.outputs.values()) for s in model.signatures] == [[new], [new]]
    assert [list(s.outputs) for s in model.signatures] == [["y"], ["out_y"]]
    assert role_of(decompositions(model).pop().outputs[0]) is None


def test_a_user_between_two_results_comes_behind_both() -> None:
    graph = Graph("main")
    x = graph.input("x", [2])
    a = graph.op("ABS", [x], [2], name="a")
    user = graph.op("NEG", [a], [2], name="user")
    b = graph.op("TANH", [a], [2], name="b")
    graph.output(graph.op("ADD", [user, b], [2], name="y"))
    before = formats.loads(formats.dumps(graph.model()))
    after = formats.loads(formats.dumps(before))
    wrap(after, ["x"], ["a", "b"])
    assert [node.op_type for node in after.graphs[0]] == [COMPOSITE, "NEG", "ADD"]
    assert_same(before, after)


def test_one_composite_within_another() -> None:
    before, after = chain(), chain()
    wrap(after, ["a"], ["b"], name="inner")
    wrap(after, ["x"], ["y"], name="outer")
    assert len(decompositions(after)) == 2
    assert [node.op_type for node in after.graphs[0]] == [COMPOSITE]
    assert_same(before, after)


# ---- what is refused -----------------------------------------------------------------------------------


def refusal(
    model: Model,
    names: list[str],
    inputs: list[str],
    outputs: list[str],
    of: dict[str, ir.Value] | None = None,
) -> str:
    """Why the nodes that make `names` cannot be outlined; nothing must have changed."""
    of = of or values(model)
    before = formats.dumps(model)
    nodes = [node for name in names if (node := of[name].producer()) is not None]
    with pytest.raises(MatchFailure) as actual:
        outline(model, model.graphs[0], nodes, [of[n] for n in inputs], [of[n] for n in outputs], "my.op")
    assert formats.dumps(model) == before
    return str(actual.value)


def test_a_value_that_goes_in_unsaid() -> None:
    assert "needs it too, at a [2, 3]" in refusal(chain(), ["b", "c"], ["x"], ["b", "c"])


def test_a_value_that_comes_out_unsaid() -> None:
    assert "used outside the region too, at b" in refusal(chain(), ["b", "c"], ["a"], ["c"])
    assert "used outside the region too, at y" in refusal(chain(), ["c", "d", "y"], ["b"], ["d"])


def test_an_output_that_the_region_does_not_make() -> None:
    assert "does not compute it, at a" in refusal(chain(), ["b"], ["a"], ["a", "b"])


def test_an_input_that_the_region_makes() -> None:
    assert "computes this input itself, at b" in refusal(chain(), ["b", "c"], ["a", "b"], ["b", "c"])


def test_a_region_that_is_not_convex() -> None:
    """y = c + d with c in the region and d, which needs b of the region, outside."""
    said = refusal(chain(), ["b", "c", "y"], ["a", "d"], ["b", "y"])
    assert "a result of the region goes back into ADD in the region, at y" in said


def test_side_effects() -> None:
    model = graphs.call_once()
    main, init = model.graphs
    model.graphs = [init, main]
    of = {"handle": next(iter(init)).outputs[0]}
    nodes = list(init)
    with pytest.raises(MatchFailure, match="ASSIGN_VARIABLE has side effects"):
        outline(model, init, nodes, [], [of["handle"]], "my.op")
    assert list(init) == nodes


def test_an_operand_in_blocks() -> None:
    """Its scales are a tensor of the graph around, which the decomposition cannot name."""
    model = graphs.blockwise()
    assert "cannot move with it, at weight" in refusal(model, ["y"], ["x", "weight"], ["y"])


def test_weights_in_blocks_move_with_their_scales() -> None:
    before, after = graphs.blockwise(), graphs.blockwise()
    wrap(after, ["x"], ["y"])
    main, inner = after.graphs
    assert set(main.initializers) == {"before"}
    assert len(inner.initializers) == 2
    assert_same(before, after)


def test_only_nodes_of_the_graph() -> None:
    model, other = chain(), chain()
    of = values(model)
    with pytest.raises(AssertionError):
        outline(model, model.graphs[0], list(other.graphs[0]), [of["x"]], [of["y"]], "my.op")


def test_between_takes_what_needs_no_input_along() -> None:
    graph = Graph("main")
    x = graph.input("x", [2])
    fixed = graph.op("NEG", [graph.constant("one", weights(2))], [2], name="fixed")
    y = graph.op("ADD", [x, fixed], [2], FLOAT, name="y")
    graph.op("ABS", [y], [2], name="behind")
    assert {node.op_type for node in nodes_between([x], [y])} == {"NEG", "ADD"}
    assert all(node.domain == DOMAIN for node in nodes_between([x], [y]))
