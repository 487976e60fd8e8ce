"""Any attention becomes its core and means the same; what only looks like attention does not."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass

import hypothesis.strategies as st
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from o2o import formats
from o2o.filters.fuse_attention import FuseAttention
from o2o.model import Model, shape_of
from o2o.operators import reference
from o2o.operators.core_attention import CoreAttention, is_core_attention
from tests.o2o.graphs import BOOL, INT32, INT64, Graph, operators
from tests.tolerances import assert_close

HIDDEN = np.float32(-3e38)


@dataclass(frozen=True)
class Form:
    """T queries of K * G heads, over S keys of a cache, or over T keys.

    mask: how it is applied: `add`, or selection of scores where they are shown or hidden; `none`.
    alibi: slopes times the key, times the distance, or `before` the scale, which scales it too.
    broken: what differs, see NEAR_MISSES.
    """

    T: int = 1
    K: int = 2
    G: int = 2
    H: int = 4
    S: int = 6
    cached: bool = True
    repeated: bool = True
    mask: str = "add"
    window: int = 0
    cap: bool = False
    scale: float = 0.3
    alibi: str = ""
    sinks: str = ""  # last, first
    less_maximum: bool = False
    bounded: bool = False
    broken: str = ""

    @property
    def N(self) -> int:
        return self.K * self.G

    @property
    def keys(self) -> int:
        return self.S if self.cached else self.T


def forms() -> st.SearchStrategy[Form]:
    @st.composite
    def draw(draw: st.DrawFn) -> Form:
        T = draw(st.integers(1, 3))
        sinks = draw(st.sampled_from(["", "", "last", "first"]))
        cap = draw(st.booleans())
        biases = ["", "key", "distance"] if cap else ["", "key", "distance", "before"]
        return Form(
            T=T,
            K=draw(st.integers(1, 3)),
            G=draw(st.integers(1, 3)),
            H=draw(st.sampled_from([2, 3])),
            S=draw(st.integers(max(T, 3), 7)),
            cached=draw(st.booleans()),
            repeated=draw(st.booleans()),
            mask=draw(st.sampled_from(["add", "show", "hide"])),
            window=draw(st.sampled_from([0, 0, 2, 4])),
            cap=cap,
            scale=draw(st.sampled_from([1.0, 0.3])),
            alibi="" if sinks else draw(st.sampled_from(biases)),
            sinks=sinks,
            less_maximum=draw(st.booleans()),
            bounded=draw(st.booleans()),
        )

    return draw()


class Attention(Graph):
    """The scattered operators of a form."""

    def __init__(self, form: Form) -> None:
        super().__init__("main")
        self.form = form
        T, N, H, S = form.T, form.N, form.H, form.keys
        q = self.input("q", [1, N, T, H])
        self.position = self.input("position", [1], INT64)
        k, v = self.keys("k"), self.keys("v")
        if form.broken == "k and v swapped":
            k, v = v, k
        k, v = self.for_heads(k), self.for_heads(v)
        x = self.product(q, k, S, adjointRhs=True)
        if form.alibi == "before":
            x = self.binary("ADD", x, self.alibi())
        scale = np.float32(form.scale)
        if form.broken == "scale of one head":
            scale = np.full((1, N, 1, 1), scale)
            scale[0, -1] *= 2
        x = self.binary("MUL", x, self.constant("scale", scale))
        if form.cap and form.broken != "capped after the mask":
            x = self.capped(x)
        if form.alibi in ("key", "distance"):
            x = self.binary("ADD", x, self.alibi())
        x = self.masked(x)
        if form.broken == "capped after the mask":
            x = self.capped(x)
        shape = [1, N, T, S]
        if form.bounded or form.broken == "a bound that is no mask":
            bound = np.float32(-2.0) if form.broken == "a bound that is no mask" else np.finfo(np.float32).min
            x = self.binary("MAXIMUM", x, self.constant("bound", bound))
        if form.sinks:
            numbers = np.linspace(-1, 1, N, dtype=np.float32).reshape(1, N, 1, 1)
            wide = self.constant("wide", np.int32([1, N, T, 1]))
            column = self.op("BROADCAST_TO", [self.constant("sinks", numbers), wide], [1, N, T, 1])
            parts = [x, column] if form.sinks == "last" else [column, x]
            shape = [1, N, T, S + 1]
            x = self.op("CONCATENATION", parts, shape, axis=3)
        if form.less_maximum:
            last = self.constant("last", np.int32([3]))
            largest = self.op("REDUCE_MAX", [x, last], [*shape[:-1], 1], keepDims=True)
            x = self.op("SUB", [x, largest], shape)
        p = self.op("SOFTMAX", [x], shape, beta=1.0)
        if form.sinks:
            first = int(form.sinks == "first") ^ (form.broken == "a key sliced off")
            bounds = [self.constant("b", np.int32(n)) for n in ([0, 0, 0, first], [1, N, T, S])]
            p = self.op("SLICE", [p, *bounds], [1, N, T, S])
        y = self.product(p, v, H, adjointRhs=False)
        self.output(self.op("ABS", [y], [1, N, T, H], name="y"))

    def keys(self, name: str) -> ir.Value:
        form = self.form
        new = self.input(name, [1, form.K, form.T, form.H])
        if not form.cached:
            return new
        zero = self.constant("zero", np.zeros(1, np.int32))
        written = self.op("CAST", [self.position], [1], INT32)
        start = self.op("CONCATENATION", [zero, zero, written, zero], [4], axis=0)
        shape = [1, form.K, form.S, form.H]
        return self.op("DYNAMIC_UPDATE_SLICE", [self.input(f"past_{name}", shape), new, start], shape)

    def for_heads(self, x: ir.Value) -> ir.Value:
        K, G, S, H = self.form.K, self.form.G, *shape_of(x)[2:]
        if not self.form.repeated or G == 1:
            return x
        to = self.constant("to", np.int32([1, K, G, S, H]))
        return self.reshaped(
            self.op("BROADCAST_TO", [self.reshaped(x, [1, K, 1, S, H]), to], [1, K, G, S, H]),
            [1, K * G, S, H],
        )

    def product(self, x: ir.Value, y: ir.Value, columns: int, **options: bool) -> ir.Value:
        form = self.form
        heads = shape_of(y)[1]
        rows = form.N * form.T // heads
        z = self.op(
            "BATCH_MATMUL",
            [self.reshaped(x, [1, heads, rows, shape_of(x)[-1]]), y],
            [1, heads, rows, columns],
            **options,
        )
        return self.reshaped(z, [1, form.N, form.T, columns])

    def capped(self, x: ir.Value) -> ir.Value:
        cap = self.constant("cap", np.float32(0.7))
        return self.binary("MUL", self.op("TANH", [self.binary("DIV", x, cap)], shape_of(x)), cap)

    def rows(self) -> ir.Value:
        """The positions of the queries, int64 [T, 1]."""
        T = self.form.T
        steps = self.constant("steps", np.arange(T).reshape(T, 1) + (self.form.broken == "mask one on"))
        if not self.form.cached:
            return self.op("ADD", [steps, self.constant("first", np.int64([0]))], [T, 1], dtype=INT64)
        return self.op("ADD", [self.position, steps], [T, 1], dtype=INT64)

    def alibi(self) -> ir.Value:
        form = self.form
        slopes = np.float32(2.0) ** -np.arange(1, form.N + 1, dtype=np.float32).reshape(1, form.N, 1, 1)
        keys = np.arange(form.keys)
        if form.broken == "rounded slopes":
            keys = keys + 0.05 * (keys % 2)
        if form.alibi != "distance":
            return self.constant("alibi", (slopes * keys).astype(np.float32))
        distance = self.op(
            "SUB", [self.constant("keys", keys), self.rows()], [form.T, form.keys], dtype=INT64
        )
        floats = self.op("CAST", [distance], [form.T, form.keys], ir.DataType.FLOAT)
        return self.op("MUL", [self.constant("slopes", slopes), floats], [1, form.N, form.T, form.keys])

    def masked(self, x: ir.Value) -> ir.Value:
        form, shape = self.form, [self.form.T, self.form.keys]
        if form.mask == "none":
            return x
        keys, rows = self.constant("keys", np.arange(form.keys)), self.rows()
        visible = self.op("LESS_EQUAL", [keys, rows], shape, BOOL)
        if form.window:
            far = self.op("SUB", [rows, self.window()], shape_of(rows), dtype=INT64)
            kind = "GREATER_EQUAL" if form.broken == "a window of one key more" else "GREATER"
            near = self.op(kind, [keys, far], shape, BOOL)
            visible = self.op("LOGICAL_AND", [visible, near], shape, BOOL)
        fill = np.float32(-2) if form.broken == "hidden keys count" else HIDDEN
        shown, hidden = self.constant("shown", np.float32(0)), self.constant("hidden", fill)
        if form.mask == "add":
            mask = self.op("SELECT_V2", [visible, shown, hidden], shape, ir.DataType.FLOAT)
            return self.binary("ADD", x, mask)
        if form.mask == "show":
            return self.op("SELECT_V2", [visible, x, hidden], shape_of(x), ir.DataType.FLOAT)
        invisible = self.op("LOGICAL_NOT", [visible], shape, BOOL)
        return self.op("SELECT_V2", [invisible, hidden, x], shape_of(x), ir.DataType.FLOAT)

    def window(self) -> ir.Value:
        """What is subtracted from the queries' positions, int64, for the last key that is too far."""
        form = self.form
        if form.broken == "chunks":  # of `window` positions: the distance to the end of the last chunk
            size, one = self.constant("size", np.int64(form.window)), self.constant("one", np.int64(1))
            rows = self.rows()
            rest = self.op("FLOOR_MOD", [rows, size], shape_of(rows), dtype=INT64)
            return self.op("ADD", [rest, one], shape_of(rows), dtype=INT64)
        if form.broken == "a window of each query":
            return self.constant("window", np.arange(form.window, form.window + form.T)[:, None])
        return self.constant("window", np.int64(form.window))

    def binary(self, kind: str, x: ir.Value, y: ir.Value) -> ir.Value:
        return self.op(kind, [x, y], shape_of(x))

    def reshaped(self, x: ir.Value, shape: list[int]) -> ir.Value:
        if shape_of(x) == tuple(shape):
            return x
        return self.op("RESHAPE", [x, self.constant("shape", np.int32(shape))], shape)


def fused(form: Form) -> tuple[Model, list[str]]:
    model, filter_ = Attention(form).model(), FuseAttention()
    filter_.apply(model, argparse.Namespace(explain=True, assume_full_cache=None, core=False))
    return formats.loads(formats.dumps(model)), filter_.messages


def core_of(model: Model) -> CoreAttention:
    (node,) = (node for node in model.graphs[0] if is_core_attention(node))
    return CoreAttention.of(node)


def assert_means_the_same(form: Form, after: Model) -> None:
    before = Attention(form).model()
    last = form.S - form.T if form.cached else 0
    for position in sorted({0, last // 2, last}):
        generator = np.random.default_rng(position)
        feeds = {
            value.name or "": np.array([position])
            if value.name == "position"
            else generator.standard_normal(shape_of(value)).astype(np.float32)
            for value in before.graphs[0].inputs
        }
        expected = reference.run_graph(before.graphs[0], feeds)["y"]
        assert_close(reference.run_graph(after.graphs[0], feeds)["y"], expected)


@settings(max_examples=40, deadline=None)
@given(form=forms())
def test_any_attention_becomes_its_core(form: Form) -> None:
    after, messages = fused(form)
    assert messages[0] == "main: fused 0 attention blocks, left 1 candidate as o2o.attention", messages
    core = core_of(after)
    assert (core.N, core.K) == (form.N, form.K) or form.T == form.G == 1 or not form.repeated
    assert core.mask is None, messages
    assert core.softcap == pytest.approx(0.7 if form.cap else 0)
    assert core.scale == pytest.approx(form.scale, rel=1e-6)
    assert core.window == (form.window if form.window < form.keys else 0)
    assert (core.sinks is not None) == bool(form.sinks)
    if form.keys > 1 and core.window != 1:
        assert (core.slopes is not None) == bool(form.alibi)
    assert operators(after)["SOFTMAX"] == operators(after)["BATCH_MATMUL"] == 0
    assert_means_the_same(form, after)


NEAR_MISSES = {
    "scale of one head": (Form(), "multiplied by something that is not one constant number"),
    "capped after the mask": (Form(cap=True), "the mask is capped too"),
    "a key sliced off": (Form(sinks="last"), "does not leave out the sinks alone"),
    "hidden keys count": (Form(mask="show"), "selects something else than a very negative number"),
    "a bound that is no mask": (Form(), "the scores have a lower bound"),
}


@pytest.mark.parametrize("broken", NEAR_MISSES)
def test_a_near_miss_is_left_alone(broken: str) -> None:
    form, reason = NEAR_MISSES[broken]
    form = dataclasses.replace(form, broken=broken)
    after, messages = fused(form)
    assert messages[0] == "main: fused 0 attention blocks, left 1 candidate alone"
    assert reason in messages[1]
    assert operators(after) == operators(Attention(form).model())


MASKS = {
    "mask one on": (Form(T=2), "the mask is not causal at position 4"),
    "rounded slopes": (Form(alibi="key"), "the mask biases the scores of visible keys at position 5"),
    "hidden keys count": (Form(), "the mask is not causal at position 4"),
    "slopes and sinks": (Form(alibi="key", sinks="last"), "the mask biases the scores of visible keys"),
}


@pytest.mark.parametrize("broken", MASKS)
def test_a_mask_with_another_meaning_stays(broken: str) -> None:
    form, reason = MASKS[broken]
    form = dataclasses.replace(form, broken=broken)
    after, messages = fused(form)
    assert core_of(after).mask is not None
    assert reason in messages[-1]
    assert_means_the_same(form, after)


WINDOWS = {
    "a window of one key more": (Form(T=2, window=3, S=7), 4),
    "chunks": (Form(T=2, window=3, S=7), None),
    "a window of each query": (Form(T=2, window=3, S=7), None),
    "mask one on": (Form(T=2, window=3, S=7), None),
}


@pytest.mark.parametrize("mask", ["add", "show", "hide"])
@pytest.mark.parametrize("broken", WINDOWS)
def test_windows_by_their_visible_keys(broken: str, mask: str) -> None:
    """A window has the size that it has at every position; what only looks like a window stays a mask."""
    form, window = WINDOWS[broken]
    form = dataclasses.replace(form, broken=broken, mask=mask)
    after, messages = fused(form)
    core = core_of(after)
    assert (core.mask is None) == (window is not None), messages
    assert core.window == (window or 0)
    assert_means_the_same(form, after)


@pytest.mark.parametrize("window", range(1, 9))
def test_windows_of_every_size(window: int) -> None:
    """Up to the capacity and beyond, where a window hides no key."""
    form = Form(T=3, S=7, window=window)
    after, _ = fused(form)
    core = core_of(after)
    assert (core.mask, core.window) == (None, window if window < 7 else 0)
    assert_means_the_same(form, after)


def test_swapped_operands_are_taken_for_what_they_are() -> None:
    form = Form(T=2, broken="k and v swapped")
    after, _ = fused(form)
    assert core_of(after).k.producer().inputs[0].name == "past_v"  # type: ignore[union-attr]
    assert_means_the_same(form, after)


def test_all_keys_are_seen_without_a_mask() -> None:
    form = Form(T=3, cached=False, mask="none")
    after, _ = fused(form)
    assert core_of(after).mask is None
    assert_means_the_same(form, after)
