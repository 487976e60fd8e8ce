"""--check: what a filter changed is seen and named, what it may change is not held against it."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from o2o import formats
from o2o.check import engine_process
from o2o.check.compare import check
from o2o.check.litert_runner import LiteRtRunner
from o2o.check.reference_runner import alike, runner_of
from o2o.errors import ModelError
from o2o.filters import (
    fuse_attention,
    gc,
    merge_circles,
    rename_io,
    reorder_output_move_0_to_last,
    reshape_io,
    transpose_io_kvcache,
)
from o2o.filters.base import Filter
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import Model
from o2o.quantization.quantize import quantize
from o2o.quantization.recipes import find_recipe
from tests.o2o import graphs


def copies(model: Model) -> tuple[Model, Model]:
    data = formats.dumps(model)
    return formats.loads(data), formats.loads(data)


@pytest.mark.parametrize("make", [make for make in graphs.SAMPLES.values() if make is not graphs.custom])
def test_a_copy_agrees(make: Callable[[], Model]) -> None:
    before, after = copies(make())
    assert "within 0.0e+00" in check([before], after)


def test_a_changed_weight_is_named() -> None:
    before, after = copies(graphs.linear())
    weight = after.graphs[0].initializers["weight"]
    numbers = weight.const_value.numpy().copy()
    numbers[0, 0] += 1
    weight.const_value = ir.Tensor(numbers, name="weight")
    with pytest.raises(ModelError, match=r"^--check: constant weight of main has other numbers"):
        check([before], after)


def test_a_small_change_within_float_noise_is_none() -> None:
    before, after = copies(graphs.linear())
    weight = after.graphs[0].initializers["weight"]
    weight.const_value = ir.Tensor(weight.const_value.numpy() * np.float32(1 + 1e-6), name="weight")
    weight.name = "another_weight"
    assert "2 outputs the same" in check([before], after)


def test_what_cannot_be_fed_or_compared_is_said() -> None:
    before, after = copies(graphs.linear())
    after.signatures[0].outputs.clear()
    with pytest.raises(ModelError, match="--check: output y of main disappeared"):
        check([before], after)
    before, after = copies(graphs.linear())
    (x,) = after.graphs[0].inputs
    x.shape = ir.Shape([3, 4])
    with pytest.raises(ModelError, match=r"input x of main became \[3, 4\] instead of \[2, 4\]"):
        check([before], after)


def test_an_output_without_a_public_name_is_compared() -> None:
    before, after = copies(graphs.linear())
    for model in (before, after):
        del model.signatures[0].outputs["z"]
    assert "2 outputs the same" in check([before], after)
    before, after = copies(before)
    after.signatures[0].graph.outputs.pop()
    with pytest.raises(ModelError, match="output z of main disappeared"):
        check([before], after)


def test_an_original_without_outputs_is_named() -> None:
    model = graphs.linear()
    model.graphs[0].outputs.clear()
    model.signatures[0].outputs.clear()
    before, after = copies(model)
    with pytest.raises(ModelError, match="the original has no outputs to compare"):
        check([before], after)


def test_scales_along_an_axis_that_does_not_exist() -> None:
    """As old converters write them: LiteRT is asked, and the original is to blame."""
    model = graphs.quantized()
    quantized = [
        value
        for value in model.graphs[0].initializers.values()
        if "quantization" in value.meta.get("fields", {})
    ]
    assert quantized
    for value in quantized:
        value.meta["fields"]["quantization"] = graphs.per_channel([0.1, 0.2, 0.3], axis=9)
    before, after = copies(model)
    with pytest.raises(ModelError, match="the original"):
        check([before], after)


class Breaks(Filter):
    """Negates the first weight it finds.

    weight   =>   -weight
    """

    name = "breaks.py"
    usage_example = "breaks.py < model.circle"

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        value = next(v for v in model.graphs[0].initializers.values() if v.dtype == ir.DataType.FLOAT)
        value.const_value = ir.Tensor(-value.const_value.numpy(), name=value.name)


def test_a_filter_that_breaks_the_model_writes_nothing(tmp_path, capsys) -> None:
    source, target = tmp_path / "in.circle", tmp_path / "out.circle"
    formats.save(graphs.linear(), source)
    target.write_bytes(b"as it was")
    assert Breaks.main([str(source), "-o", str(target), "--check"]) == 1
    assert target.read_bytes() == b"as it was"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("breaks.py: --check: constant weight of main has other numbers than before")
    assert Breaks.main([str(source), "-o", str(target)]) == 0


def test_check_leaves_no_trace_in_the_file(tmp_path) -> None:
    source = tmp_path / "in.circle"
    formats.save(graphs.linear(), source)
    results = []
    for flags in ([], ["--check"]):
        target = tmp_path / f"out{len(flags)}.circle"
        assert gc.main([str(source), "-o", str(target), *flags]) == 0
        results.append(target.read_bytes())
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("filter_", "arguments"),
    [
        (rename_io, ["output", "y=result"]),
        (rename_io, ["input", "x=data"]),
        (reorder_output_move_0_to_last, []),
        (reshape_io, ["input", "--by_shape", "[2,4]", "[8]"]),
        (reshape_io, ["output", "--by_shape", "[2,3]", "[3,2]"]),
    ],
)
def test_names_orders_and_shapes_may_change(filter_, arguments: list[str], tmp_path, capsys) -> None:
    source, target = tmp_path / "in.circle", tmp_path / "out.circle"
    formats.save(graphs.linear(), source)
    assert filter_.main([*arguments, str(source), "-o", str(target), "--check"]) == 0
    assert "checked on LiteRT: 2 outputs the same" in capsys.readouterr().err


def test_the_guide_proves_itself(exported_model, tmp_path, capsys) -> None:
    """Fused, more rows, another layout, merged: each against the one before, along the cache.

    Decode's logits and the rows of six caches; prefill's seven outputs.
    """
    steps = [
        (fuse_attention, [], "LiteRT and numpy"),
        (reshape_io, ["input", "--by_shape", "[1,2,30,10]", "[1,2,32,10]"], "numpy"),
        (transpose_io_kvcache, [], "numpy"),
    ]
    path = exported_model("grouped", "concat")
    for number, (filter_, arguments, engines) in enumerate(steps):
        target = tmp_path / f"{number}.circle"
        assert filter_.main([*arguments, str(path), "-o", str(target), "--check"]) == 0
        assert f"checked on {engines}: 7 outputs the same, within" in capsys.readouterr().err
        path = target
    prefill = exported_model("grouped", "prefill")
    assert merge_circles.main([str(prefill), str(path), "-o", str(tmp_path / "m.circle"), "--check"]) == 0
    assert "checked on LiteRT and numpy: 14 outputs the same, within" in capsys.readouterr().err


def test_a_pipe_is_read_once(monkeypatch, tmp_path, capsys) -> None:
    """The model before is read from what was spooled, not from stdin again."""
    data = formats.dumps(graphs.linear())
    reader, writer = os.pipe()
    threading.Thread(target=lambda: os.write(writer, data) and os.close(writer)).start()
    monkeypatch.setattr(sys, "stdin", os.fdopen(reader))
    assert gc.main(["-o", str(tmp_path / "out.circle"), "--check"]) == 0
    assert "checked on LiteRT: 2 outputs the same" in capsys.readouterr().err


def test_weights_outside_are_found(tmp_path, capsys) -> None:
    """What is run are the checkpoint's numbers; what is written still refers to them."""
    from safetensors.numpy import save_file

    numbers = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
    save_file({"w": numbers}, tmp_path / "model.safetensors")
    graph = graphs.Graph("main")
    x = graph.input("x", [2, 48])
    w = graph.constant("w", numbers)
    w.const_value = UnboundTensor("w", tmp_path / "model.safetensors", "w", ir.DataType.FLOAT, (64, 48))
    graph.output(graph.fc(x, w, "y"))
    formats.save(graph.model(), tmp_path / "in.circle")
    assert gc.main([str(tmp_path / "in.circle"), "-o", str(tmp_path / "out.circle"), "--check"]) == 0
    assert "checked on LiteRT: 1 output the same" in capsys.readouterr().err
    assert (tmp_path / "out.circle").stat().st_size < numbers.nbytes


def scalars() -> Model:
    """A number and a text without axes."""
    graph = graphs.Graph("main")
    x, text = graph.input("x", []), graph.input("text", [], ir.DataType.STRING)
    graph.output(graph.op("ABS", [x], [], name="y"))
    shape = graph.constant("shape", np.int32([1]))
    graph.output(graph.op("RESHAPE", [text, shape], [1], ir.DataType.STRING, name="words"))
    return graph.model()


def of_any_length() -> Model:
    """An axis of which the caller chooses the size; an example of 1 is too small for the SLICE."""
    graph = graphs.Graph("main")
    x = graph.input("x", [1, 4])
    begin, size = graph.constant("begin", np.int32([1, 0])), graph.constant("size", np.int32([2, 4]))
    y = graph.op("SLICE", [x, begin, size], [2, 4], name="y")
    for value, signature in ((x, [-1, 4]), (y, [-1, 4])):
        value.meta["fields"] = {"shapeSignature": np.int32(signature), "hasRank": True}
    graph.output(y)
    return graph.model()


def infinities() -> Model:
    """-inf, inf and NaN."""
    graph = graphs.Graph("main")
    x = graph.input("x", [3])
    zero = graph.op("SUB", [x, x], [3])
    one = graph.constant("one", np.float32([1, -1, 0]))
    graph.output(graph.op("DIV", [one, zero], [3], name="y"))
    return graph.model()


@pytest.mark.parametrize("make", [scalars, of_any_length, infinities])
def test_a_copy_of_odd_numbers_agrees(make: Callable[[], Model]) -> None:
    before, after = copies(make())
    assert "within 0.0e+00" in check([before], after)


def test_another_infinity_is_another_number() -> None:
    before, after = copies(infinities())
    node = next(node for node in after.graphs[0] if node.op_type == "DIV")
    one = node.inputs[0]
    assert one is not None
    one.name = "other"
    one.const_value = ir.Tensor(np.float32([1, 1, 0]), name="other")
    with pytest.raises(ModelError, match="output y of main differs"):
        check([before], after)


def test_an_original_that_litert_lacks_operators_of_is_blamed() -> None:
    before, after = copies(graphs.custom())
    with pytest.raises(ModelError, match="--check: LiteRT cannot run the original: "):
        check([before], after)


def test_an_original_that_crashes_the_engine_is_blamed(monkeypatch) -> None:
    """The process of the engine ends, this one goes on."""
    original = engine_process.PROGRAM
    monkeypatch.setattr(engine_process, "PROGRAM", "import os; os.abort() #" + original)
    engine_process.ENGINE.close()
    before, after = copies(graphs.conditional())
    with pytest.raises(ModelError, match="LiteRT cannot run the original: its process ended by SIGABRT"):
        check([before], after)
    before, after = copies(graphs.linear())
    assert "checked on numpy: 2 outputs the same" in check([before], after)
    monkeypatch.setattr(engine_process, "PROGRAM", original)
    assert "the same" in check([before], after)


def test_a_result_that_litert_cannot_run_is_blamed() -> None:
    before, after = copies(graphs.linear())
    node = next(node for node in after.graphs[0] if node.op_type == "FULLY_CONNECTED")
    node.op_type, node.domain = "Unknown", "circle.custom"
    with pytest.raises(ModelError, match="--check: LiteRT cannot run the result: "):
        check([before], after)


def test_a_result_that_changes_with_the_size_of_an_axis() -> None:
    before, after = copies(of_any_length())
    graph = after.graphs[0]
    for value in (*graph.inputs, *graph.outputs):
        value.meta["fields"].pop("shapeSignature")
    with pytest.raises(ModelError, match="input x of main has axes of other sizes"):
        check([before], after)


def test_an_honest_rounding_is_not_named(tmp_path, capsys) -> None:
    """What differs beyond the recipe's tolerance is the negated result, not the int8 product before it."""
    graph = graphs.Graph("main")
    x = graph.input("x", [1, 64])
    y = graph.fc(x, graph.constant("w", graphs.weights(96, 64)), "y")
    graph.output(graph.op("NEG", [y], [1, 96], name="z"))
    before, after = copies(graph.model())
    quantize(after, find_recipe("dynamic_int8"))
    last = next(node for node in after.graphs[0] if node.op_type == "NEG")
    assert "the same" in check([before], after, tolerance=0.1)
    last.op_type = "ABS"
    with pytest.raises(ModelError, match="the first tensor that differs is z,"):
        check([before], after, tolerance=0.1)


def test_models_that_round_are_compared_on_the_same_kernels() -> None:
    """XNNPACK and LiteRT's own kernels round activations to int8 differently."""
    graph = graphs.Graph("main")
    graph.output(graph.fc(graph.input("x", [1, 128]), graph.constant("w", graphs.weights(64, 128)), "y"))
    model = graph.model(format="tflite")
    graphs.sign(model, model.graphs[0])
    quantize(model, find_recipe("dynamic_int8"))
    first, second = (
        runner_of(formats.loads(formats.dumps(model)), name, or_numpy=False) for name in ("first", "second")
    )
    assert isinstance(first, LiteRtRunner)
    assert isinstance(second, LiteRtRunner)
    assert alike(first, second) is first
    feeds = {"x": graphs.weights(1, 128, seed=1)}
    plain = second.without_delegates()
    like = alike(first, plain)
    assert np.array_equal(like.run("main", feeds).outputs["y"], plain.run("main", feeds).outputs["y"])
