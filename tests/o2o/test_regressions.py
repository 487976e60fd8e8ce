"""What the tools before this one got wrong, one test each. The runtime's own are in tests/runtime_py."""

from __future__ import annotations

import random

import numpy as np
import onnx_ir as ir
import pytest

from o2o import formats
from o2o.filters.base import Filter
from o2o.filters.fuse_attention import FuseAttention
from o2o.filters.fuse_bmm_lhs_const import FuseBmmLhsConst
from o2o.filters.fuse_rms_norm import FuseRmsNorm
from o2o.filters.fuse_rope import FuseRope
from o2o.filters.gc import Gc
from o2o.filters.merge_circles import MergeCircles
from o2o.filters.reshape_io import ReshapeIo, main
from o2o.filters.transpose_io_kvcache import TransposeIoKvcache
from o2o.lower.litert import lower_to_litert
from o2o.model import CUSTOM_DOMAIN, Model
from o2o.operators import reference
from tests.o2o import attention_graphs, fused_graphs, graphs
from tests.o2o.graphs import Graph, exported_feeds, linear, operators
from tests.tolerances import assert_close


def apply(filter_: Filter, model: Model, *arguments: str) -> Model:
    filter_.apply(model, filter_.parser().parse_args(list(arguments)))
    return formats.loads(formats.dumps(model))


@pytest.mark.parametrize("seed", range(3))
def test_attention_was_found_by_the_numbers_of_its_operators(exported_model, seed: int) -> None:
    """Any order in which the graph can run is as good, and so is whatever stands between."""
    model = formats.load(exported_model("grouped", "concat"))
    graph = model.graphs[0]
    shuffle(graph, random.Random(seed))
    x = graph.inputs[0]
    for position in (0, 17, 40):
        odd = ir.Node(
            "circle", "NEG", [x], outputs=[ir.Value(name=f"odd{position}", shape=x.shape, type=x.type)]
        )
        graph.insert_before(graph[position], odd)
        graph.outputs.append(odd.outputs[0])
    before = formats.loads(formats.dumps(model))
    after = apply(FuseAttention(), model)
    assert operators(after)["ATTENTION"] == 3
    given = exported_feeds(before, 9)
    expected = reference.run_graph(before.graphs[0], given)["logits"]
    assert_close(reference.run_graph(after.graphs[0], given)["logits"], expected)


def shuffle(graph: ir.Graph, generator: random.Random) -> None:
    """The nodes of `graph` in another order in which they can run."""
    nodes = list(graph)
    before = {node: {v.producer() for v in node.inputs if v is not None} - {None} for node in nodes}
    order: list[ir.Node] = []
    while len(order) < len(nodes):
        ready = [node for node in nodes if node not in order and before[node] <= set(order)]
        order.append(generator.choice(ready))
    graph.extend(order)


def test_all_custom_operators_were_merged_as_one() -> None:
    models = []
    for code in ("first", "second"):
        graph = Graph(code)
        x, y = graph.input("x", [2]), graph.value("y", [2])
        graph.node(code, [x], [y], domain=CUSTOM_DOMAIN)
        graph.output(y)
        models.append(graph.model())
    merged = formats.loads(formats.dumps(MergeCircles().merged(models, ["a", "b"])))
    assert [graph[0].op_type for graph in merged.graphs] == ["first", "second"]


FILTERS = {
    "fuse.attention": (FuseAttention, []),
    "fuse.rms_norm": (FuseRmsNorm, []),
    "fuse.rope": (FuseRope, []),
    "fuse.bmm_lhs_const": (FuseBmmLhsConst, []),
    "reshape.io": (ReshapeIo, ["input", "--by_shape", "[2,4]", "[8]"]),
    "transpose.io.kvcache": (TransposeIoKvcache, []),
    "gc": (Gc, []),
}


@pytest.mark.parametrize("which", FILTERS)
def test_only_the_first_subgraph_of_a_merged_file_was_kept(which: str) -> None:
    """Every filter takes both, and changes both."""
    models = []
    for name in ("prefill", "decode"):
        model = attention_graphs.build(attention_graphs.Form(join="slice"))
        model.signatures[0].name = name
        unused = ir.Value(name="unused", shape=ir.Shape([2, 4]), type=ir.TensorType(graphs.FLOAT))
        model.graphs[0].inputs.append(unused)
        models.append(model)
    merged = MergeCircles().merged(models, ["a", "b"])
    filter_, arguments = FILTERS[which]
    after = apply(filter_(), merged, *arguments)
    assert [signature.name for signature in after.signatures] == ["prefill", "decode"]
    first, second = (operators(Model("circle", [graph])) for graph in after.graphs)
    assert first == second
    if which == "fuse.attention":
        assert first["ATTENTION"] == 1
    first, second = ([list(v.shape) for v in graph.inputs] for graph in after.graphs)
    assert first == second
    assert ([8] in first) == (which == "reshape.io")


def test_buffers_of_permutations_were_off_by_one() -> None:
    """Each TRANSPOSE that comes out of the file moves its axes to where its shapes say they go."""
    form = attention_graphs.Form(T=3, K=2, join="slice")
    after = apply(TransposeIoKvcache(), attention_graphs.build(form))
    found = [node for node in after.graphs[0] if node.op_type == "TRANSPOSE"]
    assert len(found) == 7
    for node in found:
        before, axes, result = *node.inputs, node.outputs[0]
        assert axes.const_value.numpy().shape == (4,)
        assert [before.shape[axis] for axis in axes.const_value.numpy()] == list(result.shape)
    turned = [node for node in found if node.inputs[0].is_graph_input()]
    assert [node.inputs[1].const_value.numpy().tolist() for node in turned] == [[0, 2, 1, 3]] * 2


def test_reshape_io_was_silent_when_nothing_matched(tmp_path, capsys) -> None:
    source, target = tmp_path / "in.circle", tmp_path / "out.circle"
    formats.save(linear(), source)
    assert main(["input", "--by_shape", "[1,16,30,4]", "[1,16,32,4]", str(source), "-o", str(target)]) == 2
    captured = capsys.readouterr()
    assert captured.err == "reshape.io.py: no input has the shape [1,16,30,4]; there are [2,4]\n"
    assert not target.exists()


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_constants_were_taken_to_be_int32(dtype: type) -> None:
    """Axes, bounds, permutations and shapes of int64, as ONNX's exporters write them, are what they say."""
    for join in ("none", "concat", "slice"):
        form = attention_graphs.Form(T=2, join=join)
        before = attention_graphs.build(form)
        cast_constants(before, dtype)
        after = apply(FuseAttention(), formats.loads(formats.dumps(before)))
        assert operators(after)["ATTENTION"] == 1
        given = attention_graphs.feeds_at(form, 2)
        expected = reference.run_graph(before.graphs[0], given)["y"]
        assert_close(reference.run_graph(after.graphs[0], given)["y"], expected)


def cast_constants(model: Model, dtype: type) -> None:
    """Give operands that are lists of numbers (all int32 constants that are) another dtype."""
    for value in model.graphs[0].initializers.values():
        joined = any(use.node.op_type == "CONCATENATION" for use in value.uses())
        if value.dtype == ir.DataType.INT32 and value.const_value is not None and not joined:
            value.const_value = ir.Tensor(value.const_value.numpy().astype(dtype), name=value.name)
            value.type = ir.TensorType(value.const_value.dtype)


def test_caches_were_turned_with_the_number_of_query_heads() -> None:
    """Eight query heads over two of keys: a cache has two."""
    form = fused_graphs.Form(K=2, G=4, S=7, layout="BNTH", has_roles=False)
    after = apply(TransposeIoKvcache(), fused_graphs.attention(form))
    assert [list(value.shape) for value in after.graphs[0].inputs[3:5]] == [[1, 7, 2, 4]] * 2


@pytest.mark.parametrize("position", [0, 3])
def test_queries_had_relative_positions(position: int) -> None:
    """Query t of several stands at position + t: it sees as many rows and one, whatever is behind them."""
    form = fused_graphs.Form(T=3, layout="BNTH", S=7)
    model = lower_to_litert(fused_graphs.attention(form))
    given = fused_graphs.feeds_at(model, position)
    found = graphs.run(model, given)["y"]
    for t in range(form.T):
        behind = {name: array.copy() for name, array in given.items()}
        for name in ("past_key_0", "past_value_0"):
            behind[name][:, :, position + form.T :] = 1000  # rows that nobody may see
        behind["x"][:, t + 1 :] = 5  # and tokens that come later
        assert_close(graphs.run(model, behind)["y"][0, t], found[0, t])
        before = {name: array.copy() for name, array in given.items()}
        before["past_value_0"][:, :, :position] += 1
        moved = np.abs(graphs.run(model, before)["y"][0, t] - found[0, t]).max()
        assert (moved > 1e-3) == (position > 0), "what came before is seen by all"
