"""wrap.composites.py wraps candidates, reports failures, and every other filter takes the result."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from o2o import formats
from o2o.filters import gc, inspect, merge_circles
from o2o.model import Model
from o2o.rewriting.outline import COMPOSITE, decompositions
from tests.o2o import graphs
from tests.o2o.filters.conftest import Command
from tests.o2o.graphs import Graph, feeds, operators, weights
from tests.tolerances import assert_close


def attention(name: str = "decode", T: int = 1) -> Model:
    """y = softmax(q k' / 2) v of a norm's result, with 2 heads; and z, a softmax of something else."""
    graph = Graph(name)
    q, k, v = (graph.input(f"{name}_{x}", [1, 2, t, 4]) for x, t in (("q", T), ("k", 6), ("v", 6)))
    axis, epsilon = graph.constant("axis", np.int32([3])), graph.constant("epsilon", np.float32(1e-5))
    mean = graph.op("MEAN", [graph.op("MUL", [q, q], [1, 2, T, 4]), axis], [1, 2, T, 1], keepDims=True)
    root = graph.op("RSQRT", [graph.op("ADD", [mean, epsilon], [1, 2, T, 1])], [1, 2, T, 1])
    q = graph.op("MUL", [q, root], [1, 2, T, 4])
    q = graph.op("MUL", [q, graph.constant("weight", weights(4))], [1, 2, T, 4])
    scores = graph.op("BATCH_MATMUL", [q, k], [1, 2, T, 6], adjointLhs=False, adjointRhs=True)
    scores = graph.op("MUL", [scores, graph.constant("half", np.float32(0.5))], [1, 2, T, 6])
    shares = graph.op("SOFTMAX", [scores], [1, 2, T, 6], beta=1.0)
    y = graph.op("BATCH_MATMUL", [shares, v], [1, 2, T, 4], adjointLhs=False, adjointRhs=False, name="y")
    graph.output(y, graph.op("SOFTMAX", [y], [1, 2, T, 4], name="z", beta=1.0))
    return graph.model(format="tflite")


def assert_same(before: Model, after: Model) -> None:
    given = feeds(before)
    expected, found = graphs.run(before, given), graphs.run(after, given)
    assert list(found) == list(expected)
    for name in expected:
        assert_close(found[name], expected[name])


def test_says_how_many_and_checks_itself(command: Command) -> None:
    before = attention()
    after = command(before, "--check")
    assert len(decompositions(after)) == 2
    assert operators(after)[COMPOSITE] == 2
    wrapped, checked = command.said.splitlines()
    assert wrapped == (
        "wrap.composites.py: wrapped 1 odml.rms_norm, 1 odml.scaled_dot_product_attention, "
        "left 1 candidate alone (--explain gives reasons)"
    )
    assert "2 outputs the same" in checked
    assert_same(before, after)


def test_explains_what_is_left_alone(command: Command) -> None:
    command(attention(), "--explain")
    messages = command.said.splitlines()
    assert messages[0].endswith("left 1 candidate alone")
    assert messages[1].startswith(
        "wrap.composites.py: decode: SOFTMAX z: the softmax is not over products of queries and keys"
    )


def test_again_there_is_nothing_to_wrap(command: Command) -> None:
    once = command(attention())
    twice = command(once)
    assert "wrapped nothing, left 1 candidate alone" in command.said
    assert operators(twice) == operators(once)


def test_circle_holds_composites_too(command: Command) -> None:
    model = attention()
    model.format = "circle"
    after = command(model)
    assert after.format == "circle"
    assert operators(after)[COMPOSITE] == 2


def wrapped(command: Command, tmp_path: Path, name: str, T: int) -> Path:
    path = tmp_path / f"{name}.tflite"
    formats.save(command(attention(name, T)), path)
    return path


def test_gc_keeps_what_composites_run(command: Command, tmp_path: Path) -> None:
    path, result = wrapped(command, tmp_path, "decode", 1), tmp_path / "result.tflite"
    assert gc.main([str(path), "-o", str(result)]) == 0
    assert "nothing to remove" in command.capture.readouterr().err
    assert_same(attention(), formats.load(result))


def test_merging_models_with_composites(command: Command, tmp_path: Path) -> None:
    """Each signature goes on running its own; constants are shared across decompositions, too."""
    paths = [wrapped(command, tmp_path, name, T) for name, T in (("prefill", 3), ("decode", 1))]
    result = tmp_path / "result.tflite"
    assert merge_circles.main([*map(str, paths), "-o", str(result)]) == 0
    model = formats.load(result)
    assert len(decompositions(model)) == 4
    assert len({graph.name for graph in model.graphs}) == len(model.graphs) == 6
    engine = graphs.interpreter(result.read_bytes())
    for name, T in (("prefill", 3), ("decode", 1)):
        given = feeds(attention(name, T))
        found = engine.get_signature_runner(name)(**given)
        expected = graphs.run(attention(name, T), given)
        for output in expected:
            assert_close(found[output], expected[output])


def test_inspecting_models_with_composites(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = wrapped(command, tmp_path, "decode", 1)
    assert inspect.main([str(path)]) == 0
    output = capsys.readouterr().out
    assert f"{COMPOSITE} 2" in output
    assert "odml.rms_norm.impl_0" in output
    assert inspect.main(["--json", str(path)]) == 0
    assert "odml.scaled_dot_product_attention.impl_0" in json.dumps(json.loads(capsys.readouterr().out))
