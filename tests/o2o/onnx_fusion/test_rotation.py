"""RoPE of any exporter becomes one operator, if both halves of its tables are equal."""

from __future__ import annotations

import numpy as np
import pytest

from o2o.onnx_fusion.forms import Form
from o2o.onnx_fusion.rotation import OnnxRopeRule
from tests.o2o.onnx_fusion.comparison import assert_same, fused, model_of, operators

pytest.importorskip("onnxruntime")


def rotation(tables: str = "c = Cos (a) s = Sin (a)", batch: str = "B") -> str:
    """Two rotations by one table, of angles [B or 1, T, 8]."""

    def rotated(x: str) -> str:
        return f"""{x}0 = Slice ({x}, start, half, axis, step) {x}1 = Slice ({x}, half, top, axis, step)
        {x}2 = Neg ({x}1) {x}3 = Concat <axis = -1> ({x}2, {x}0)
        {x}4 = Mul ({x}, cos) {x}5 = Mul ({x}3, sin) {x}6 = Add ({x}4, {x}5)"""

    return f"""g (float[B, 4, T, 8] q, float[B, 2, T, 8] k, int64[{batch}, T] at)
        => (float[B, 4, T, 8] q6, float[B, 2, T, 8] k6)
        <int64[1] start = {{0}}, int64[1] half = {{4}}, int64[1] top = {{9223372036854775807}},
        int64[1] axis = {{3}}, int64[1] step = {{1}}, int64[1] heads = {{1}}, int64[1] last = {{2}},
        float[4] frequencies = {{1, 0.5, 0.25, 0.1}}> {{
        f = Cast <to = 1> (at) column = Unsqueeze (f, last) a0 = Mul (column, frequencies)
        a = Concat <axis = -1> (a0, a0) {tables}
        cos = Unsqueeze (c, heads) sin = Unsqueeze (s, heads) {rotated("q")} {rotated("k")} }}"""


def feeds(B: int, T: int, batch: int) -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(T)
    q, k = (numbers.standard_normal((B, N, T, 8)).astype(np.float32) for N in (4, 2))
    return {"q": q, "k": k, "at": np.arange(batch * T).reshape(batch, T) + 3}


@pytest.mark.parametrize("form", ["standard", "ort"])
@pytest.mark.parametrize("batch", ["B", "1"])
def test_texts_with_positions_of_their_own_or_in_common(batch: str, form: Form) -> None:
    before = model_of(rotation(batch=batch))
    after, result = fused(before, OnnxRopeRule(form))
    assert result.rewritten == operators(after)["RotaryEmbedding"] == 2
    assert not operators(after)["Neg"]
    for B, T in ((1, 1), (2, 5)):
        assert_same(before, after, feeds(B, T, B if batch == "B" else 1))


def test_tables_of_a_cache() -> None:
    """Older models look rows up in tables of all positions."""
    table = ", ".join(map(str, np.tile(np.arange(4), 2 * 16).tolist()))
    text = rotation("c = Gather (table, at) s = Neg (c)").replace("frequencies", "unused", 1)
    text = text.replace("frequencies", "unused").replace(
        "<int64[1] start", f"<float[16, 8] table = {{{table}}}, int64[1] start"
    )
    before = model_of(text)
    after, result = fused(before, OnnxRopeRule("standard"))
    assert result.rewritten == 2
    assert_same(before, after, feeds(2, 3, 2))


NEAR_MISSES = {  # what is replaced, and how many rotations are fused then
    "halves of other angles": ("Concat <axis = -1> (a0, a0)", "Concat <axis = -1> (a0, column4)", 0),
    "angles of neighbors": ("c = Cos (a)", "c = Mul (a, w8)", 0),
    "a part of the tokens": ("q2 = Neg (q1)", "q7 = Slice (q1, start, top, two) q2 = Neg (q7)", 1),
    "no negation": ("q2 = Neg (q1)", "q2 = Abs (q1)", 1),
    "another quarter": ("(q, half, top", "(q, quarter, top", 1),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_stay(name: str) -> None:
    old, new, count = NEAR_MISSES[name]
    extra = "float[8] w8 = {1, 2, 3, 4, 5, 6, 7, 8}, int64[1] two = {2}, int64[1] quarter = {2}"
    text = rotation().replace(old, new).replace("<int64[1] start", f"<{extra}, int64[1] start", 1)
    text = text.replace("a = Concat", "column4 = Neg (a0) a = Concat")
    if name == "another quarter":
        text = text.replace("Slice (q, start, half", "Slice (q, start, six")
        text = text.replace("<float[8]", "<int64[1] six = {6}, float[8]")
    after, _ = fused(model_of(text), OnnxRopeRule("standard"))
    assert operators(after)["RotaryEmbedding"] == count
