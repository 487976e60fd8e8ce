"""Buckets of ONNX decoders: proven on the raised graph, and as fast as their caches are short."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from o2o import formats
from o2o.filters import bucket_kvcache, merge_circles
from o2o.model import shape_of
from tests.o2o.onnx_graphs import data_of

onnxruntime = pytest.importorskip("onnxruntime")
V, D, S = 32, 16, 24
WEIGHTS = np.random.default_rng(0).standard_normal((4, V, D)).astype(np.float32)

MASKED = """
    column = Unsqueeze (position, axis)
    seen = LessOrEqual (slots, column)
    mask_ = Where (seen, zero, low)
    mask = Unsqueeze (mask_, axis)
    masked = Add (scores, mask)
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def decoder(
    masked: str = MASKED, tokens: int = 1, rows: int | str = S, written: str = "position"
) -> onnx.ModelProto:
    """One layer of two heads over static caches [1, 1, S, D]: keys are shared by an Expand."""
    cache = f"float[1, 1, {rows}, {D}]"
    proto = onnx.parser.parse_model(f"""
        <ir_version: 11, opset_import: ["" : 24]>
        g (int64[1, {tokens}] tokens, int64[1] position, {cache} past_key, {cache} past_value)
          => (float[1, {tokens}, {V}] logits, {cache} present_key, {cache} present_value)
        <int64[4] split = {{1, 2, {tokens}, {D}}}, int64[3] rows_of = {{1, {tokens}, {D}}},
         int64[4] heads = {{1, 2, {S}, {D}}}, int64[1] axis = {{1}}, float zero = {{0}},
         float low = {{-1e9}}, int64[1] last = {{-1}}> {{
            k = Gather (keys, tokens)
            k4 = Unsqueeze (k, axis)
            v = Gather (values, tokens)
            v4 = Unsqueeze (v, axis)
            present_key = TensorScatter <axis = 2> (past_key, k4, {written})
            present_value = TensorScatter <axis = 2> (past_value, v4, {written})
            q = Gather (queries, tokens)
            q4 = Reshape (q, split)
            kk = Expand (present_key, heads)
            vv = Expand (present_value, heads)
            kt = Transpose <perm = [0, 1, 3, 2]> (kk)
            scores = MatMul (q4, kt)
            {masked}
            weights = Softmax <axis = -1> (masked)
            mixed = MatMul (weights, vv)
            summed = ReduceSum <keepdims = 0> (mixed, axis)
            y = Reshape (summed, rows_of)
            head_ = Transpose <perm = [1, 0]> (head)
            logits = MatMul (y, head_)
        }}""")
    arrays = {"keys": WEIGHTS[0], "values": WEIGHTS[1], "head": WEIGHTS[2], "slots": np.arange(S)[None]}
    arrays["queries"] = np.concatenate([WEIGHTS[3], -WEIGHTS[3]], 1)
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    roles = {"tokens": {"role": "tokens"}, "position": {"role": "position"}, "logits": {"role": "logits"}}
    for kind in ("key", "value"):
        slot = {"layer": 0, "layout": "BNTH"}
        roles |= {
            f"past_{kind}": {"role": f"{kind}_cache", **slot},
            f"present_{kind}": {"role": kind, **slot},
        }
    sides = {
        side: [{"name": value.name, **roles[value.name]} for value in getattr(proto.graph, side[:-1])]
        for side in ("inputs", "outputs")
    }
    contract = {"version": 1, "signatures": {"decode" if tokens == 1 else "prefill": sides}}
    onnx.helper.set_model_props(proto, {"o2o.contract": json.dumps(contract)})
    return proto


def bucketed(proto: onnx.ModelProto, *arguments: str) -> int:
    Path("in.onnx").write_bytes(data_of(proto))
    return bucket_kvcache.main(["in.onnx", "-o", "out.onnx", *arguments])


def run(file: str, rows: int, tokens: list[int]) -> np.ndarray:
    """The logits of each token, from caches of some rows."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    caches = [np.zeros((1, 1, rows, D), np.float32)] * 2
    logits = []
    for position, token in enumerate(tokens):
        feeds = {"tokens": np.array([[token]]), "position": np.array([position])}
        one, *caches = session.run(None, {**feeds, "past_key": caches[0], "past_value": caches[1]})
        logits.append(one)
    return np.concatenate(logits)


def test_each_bucket_computes_what_decode_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert bucketed(decoder(), "--capacities", "4,8", "--check") == 0
    assert "added decode_4 and decode_8" in capsys.readouterr().err.replace(
        "decode_4, decode_8", "decode_4 and decode_8"
    )
    onnx.checker.check_model("out.onnx", full_check=True)
    tokens = [3, 9, 1, 30]
    expected = run("in.onnx", S, tokens)
    for rows in (4, 8, S):
        np.testing.assert_allclose(run("out.onnx", rows, tokens), expected, rtol=1e-5, atol=1e-6)
    model = formats.load("out.onnx")
    assert [shape_of(s.inputs["past_key"])[2] for s in model.signatures] == [S, 4, 8]


def test_with_prefill_two_sizes_select() -> None:
    assert bucketed(decoder(), "--capacities", "8") == 0
    Path("prefill.onnx").write_bytes(data_of(decoder(tokens=2)))
    assert merge_circles.main(["prefill.onnx", "out.onnx", "--check", "-o", "all.onnx"]) == 0
    np.testing.assert_allclose(run("all.onnx", 8, [5, 6]), run("in.onnx", S, [5, 6]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (decoder(masked="masked = Identity (scores)"), "no mask is added to scores"),
        (decoder(masked=MASKED.replace("LessOrEqual", "GreaterOrEqual")), "goes beyond 8 rows"),
        (decoder(written="last"), "the row that is written"),
    ],
)
def test_refused_without_a_proof(
    proto: onnx.ModelProto, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bucketed(proto, "--capacities", "8") == 1
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


def test_caches_of_any_length_need_no_buckets(capsys: pytest.CaptureFixture[str]) -> None:
    assert bucketed(decoder(rows="S")) == 0
    assert "needs no buckets" in capsys.readouterr().err
    assert len(formats.load("out.onnx").graphs) == 1
