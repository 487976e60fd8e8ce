"""Attention blocks in every form that `fuse.attention.py` should match, and broken ones.

`Form` names the choices; `build(form)` makes a model with one block on random weights; `feeds_at` its
inputs at a position, with numbers in the rows of the cache that a causal mask hides which would show.
"""

from __future__ import annotations

from dataclasses import dataclass

import hypothesis.strategies as st
import numpy as np
import onnx_ir as ir

from o2o.contract import Role
from o2o.model import Model
from tests.o2o.graphs import INT32, INT64, Graph, weights

HIDDEN = np.float32(-1e9)
D = 12  # model dim


@dataclass(frozen=True)
class Form:
    """T tokens, K key heads, G query heads for each, H head dim; the other fields vary how it is written."""

    T: int = 1
    K: int = 2
    G: int = 2
    H: int = 4
    join: str = "none"  # concat, slice (DYNAMIC_UPDATE_SLICE)
    past: int = 5  # rows of the cache, with a join
    mask: str = "causal"  # none, ones (an arbitrary one), input
    rotate: bool = True
    scale: str = "scores"  # q, k, divide
    rank: int = 4  # of the operands of BATCH_MATMUL; 3 folds the batch away
    adjoint: bool = False  # k transposed by an option instead of TRANSPOSE
    repeat: str = "broadcast"  # fold: the group's queries are rows
    flat: bool = False  # projections without the batch axis
    layout: str = "BNTH"  # of the caches, or BTNH
    transposed: bool = False  # a TRANSPOSE between cache input and cache update
    returns_caches: bool = False  # updated caches are outputs, present_key_0 and present_value_0
    # slots (against the position), rows (keys against queries), table (read by GATHER)
    mask_form: str = "slots"
    contract_layout: str = "BNTH"  # of the caches, by the contract; no roles when empty
    int32: bool = False  # positions, else int64
    position_per_token: bool = False  # else one, of the first token
    broken: str = ""  # see BROKEN


BROKEN = {
    "scale": "the scale is",
    "bias": "the projection of k has a bias",
    "activation": "FULLY_CONNECTED has a fused activation",
    "interleave": "a projection does not have 4 heads of 4",
    "other input": "not projections of one tensor",
    "other table": "rotated by different tables",
    "unrotated k": "one of q and k is rotated",
    "weights are an output": "the attention weights is used elsewhere",
    "heads out of order": "cuts through the axes",
    "softmax axis": "the softmax does not go over the keys",
    "scaled values": "v is scaled",
    "swapped halves": "no term of the sum is a rotated half",
    "value cache elsewhere": "written at different positions",
    "written one row on": "at position 0 the cache is written at [0, 0, 1, 0]",
    "written at row 0": "the cache is always written at the same row",
    "written at the last query": "at position 0 the cache is written at",
    "concatenated in front": "the past of the cache is not a graph input",
    "cache of its own": "the past of the cache is not a graph input",
    "cache by column": "the cache is neither [1, K, S, H] nor [1, S, K, H]",
    "layouts differ": "keys are cached as BNTH, values as BTNH",
    "contract differs": "of 2 heads is ambiguous",
    "one cache for both": "which ATTENTION writes in place, is used elsewhere too",
    "one join for both": "keys and values are in one cache",
    "cache read elsewhere": "which ATTENTION writes in place, is used elsewhere too",
    "cache passed through": "which ATTENTION writes in place, is used elsewhere too",
    "scores are an output": "the updated cache is used elsewhere too",
    "updated cache is an output": "the updated cache is used elsewhere too",
    "cached values scaled": "v is scaled",
    "neither cache nor rotation": "cannot infer the head dimension",
    "mask too large": "the mask is larger than the scores",
    "quantized weights": "the weights of k are quantized or shuffled",
    "shuffled weights": "the weights of q are quantized or shuffled",
    "position among others": "which is not a position of 1 tokens",
    "ambiguous cache": "of 5 heads is ambiguous",
}


def build(form: Form) -> Model:
    """A model of one block: x [1, T, D], caches and position as the form has them -> y [1, T, D]."""
    return _Block(form).model()


def feeds_at(form: Form, position: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs when the first token is at `position`; rows that a mask hides hold 1000."""
    generator = np.random.default_rng(seed)
    feeds = {"x": generator.standard_normal((1, form.T, D)).astype(np.float32)}
    if form.broken == "other input":
        feeds["x2"] = generator.standard_normal((1, form.T, D)).astype(np.float32)
    if form.join != "none" or form.rotate:
        first = np.arange(form.T if form.position_per_token else 1)
        feeds["position"] = (position + first).astype(np.int32 if form.int32 else np.int64)
    if form.broken == "value cache elsewhere":
        feeds["position_2"] = np.array([position])
    if form.join != "none":
        for name in ("past_key_0", "past_value_0"):
            feeds[name] = generator.standard_normal((1, form.K, form.past, form.H)).astype(np.float32)
            if form.mask == "causal":
                feeds[name][:, :, position:] = 1000
            if form.layout == "BTNH":
                feeds[name] = feeds[name].transpose(0, 2, 1, 3).copy()
    if form.mask == "input":
        columns = form.past if form.join == "slice" else form.T
        feeds["mask"] = np.where(generator.random((1, 1, form.T, columns)) < 0.3, HIDDEN, np.float32(0))
    return feeds


def forms() -> st.SearchStrategy[Form]:
    """Forms that mean attention; each must fuse."""

    @st.composite
    def draw(draw: st.DrawFn) -> Form:
        join = draw(st.sampled_from(["none", "concat", "slice"]))
        masks = {"none": ["causal", "none", "ones", "input"], "concat": ["causal"]}
        T = draw(st.integers(1, 4))
        past = draw(st.integers(5, 7) if join != "slice" else st.sampled_from([5, 6, 7, max(T, 2)]))
        return Form(
            T=T,
            K=draw(st.integers(1, 3)),
            G=draw(st.integers(1, 3)),
            H=draw(st.sampled_from([2, 4, 6])),
            join=join,
            past=past,
            mask=draw(st.sampled_from(masks.get(join, ["causal", "none", "input"]))),
            rotate=True if join == "none" else draw(st.booleans()),
            scale=draw(st.sampled_from(["scores", "q", "divide"] + (["k"] if join == "none" else []))),
            rank=draw(st.sampled_from([3, 4])),
            adjoint=draw(st.booleans()),
            repeat=draw(st.sampled_from(["broadcast", "fold"])),
            flat=draw(st.booleans()),
            layout=(layout := draw(st.sampled_from(["BNTH", "BTNH"]))),
            contract_layout=draw(st.sampled_from([layout, ""])) if past > 4 else layout,
            transposed=draw(st.booleans()),
            returns_caches=join == "slice" and draw(st.booleans()),
            mask_form=draw(st.sampled_from(["slots", "rows", "table"])) if join == "slice" else "slots",
            int32=draw(st.booleans()),
            position_per_token=draw(st.booleans()),
        )

    return draw()


class _Block:
    def __init__(self, form: Form) -> None:
        self.form = form
        self.graph = Graph("main")
        self.position: ir.Value | None = None
        self.more_outputs: list[ir.Value] = []

    def model(self) -> Model:
        form, graph = self.form, self.graph
        T, K, G, H = form.T, form.K, form.G, form.H
        N = K * G
        x = graph.input("x", [1, T, D])
        x_k = graph.input("x2", [1, T, D]) if form.broken == "other input" else x
        if form.join != "none" or form.rotate:
            self.integer = INT32 if form.int32 else INT64
            self.position = graph.input("position", [form.T if form.position_per_token else 1], self.integer)
        if form.broken == "position among others":
            others = graph.input("others", [7], INT64)
            begin, one = graph.constant("begin", np.int32([0])), graph.constant("one", np.int32([1]))
            self.position = graph.op("SLICE", [others, begin, one], [1])
        if form.broken == "value cache elsewhere":
            self.position_2 = graph.input("position_2", [1], INT64)
        q, k = self.project(x, N, "q"), self.project(x_k, K, "k")
        v = k if form.broken == "one join for both" else self.project(x, K, "v")
        if form.rotate:
            tables = self.tables("")
            other = self.tables("other ") if form.broken == "other table" else tables
            q = self.rotated(q, tables)
            k = k if form.broken == "unrotated k" else self.rotated(k, other)
        if form.scale == "q":
            q = self.scaled(q)
        if form.scale == "k":
            k = self.scaled(k)
        if form.broken == "scaled values":
            v = graph.op("MUL", [v, graph.constant("two", np.float32(2))], _shape(v))
        if form.broken == "cached values scaled":
            v = graph.op("MUL", [v, graph.constant("two", np.float32(2))], _shape(v))
        k = self.joined(k, "past_key_0")
        v = k if form.broken == "one join for both" else self.joined(v, "past_value_0")
        if form.broken == "cached values scaled":
            v = graph.op("MUL", [v, graph.constant("half", np.float32(0.5))], _shape(v))
        S = _shape(k)[2]
        if form.repeat == "fold":
            q = self.reshape(q, [1, K, G * T, H])
            heads, rows = K, G * T
        else:
            k, v = self.repeated(k), self.repeated(v)
            heads, rows = N, T
        scores = self.product(q, k, [heads, rows, S])
        if form.scale in ("scores", "divide") and form.broken != "scaled mask":
            scores = self.scaled(scores)
        # a mask for one query a row can be added to folded scores, one for several cannot
        if form.repeat == "fold" and T > 1:
            scores = self.reshape(scores, [1, N, T, S])
        if (mask := self.mask(S, N)) is not None and form.broken == "mask too large":
            mask = self.reshape(mask, [1, 1, 1, T, S])
            scores = graph.op("ADD", [scores, mask], [1, *_shape(scores)], name="masked")
        elif mask is not None:
            scores = graph.op("ADD", [scores, mask], _shape(scores), name="masked")
        if form.broken == "scores are an output":
            self.more_outputs.append(scores)
        if form.broken == "two masks":
            zeros = graph.constant("zeros", np.zeros((1, 1, T, S), np.float32))
            scores = graph.op("ADD", [scores, zeros], _shape(scores), name="masked twice")
        if form.broken == "scaled mask":
            scores = self.scaled(scores)
        if form.broken == "softmax axis":
            scores = self.transpose(scores, [0, 1, 3, 2])
        p = graph.op("SOFTMAX", [scores], _shape(scores), name="weights", beta=1.0)
        if form.broken == "weights are an output":
            self.more_outputs.append(p)
        if form.broken == "softmax axis":
            p = self.transpose(p, [0, 1, 3, 2])
        p = self.reshape(p, [1, heads, rows, S])
        y = self.mixed(p, v, [heads, rows, H])
        y = self.reshape(y, [1, N, T, H])
        if form.broken != "heads out of order":
            y = self.transpose(y, [0, 2, 1, 3])
        y = self.reshape(y, [T, N * H] if form.flat else [1, T, N * H])
        y = graph.fc(y, graph.constant("wo", weights(D, N * H, seed=9) / 3), "out")
        y = self.reshape(y, [1, T, D])
        graph.output(
            graph.op("ADD", [y, graph.constant("one", np.float32(1))], [1, T, D], name="y"),
            *self.more_outputs,
        )
        return graph.model()

    def project(self, x: ir.Value, heads: int, name: str) -> ir.Value:
        """[1, heads, T, H]"""
        form, graph = self.form, self.graph
        w = graph.constant(f"w{name}", weights(heads * form.H, D, seed=len(name) + ord(name[0])) / 3)
        bias = (
            graph.constant("bias", weights(heads * form.H)) if form.broken == "bias" and name == "k" else None
        )
        flat = self.reshape(x, [form.T, D]) if form.flat else x
        y = graph.fc(flat, w, name, bias)
        if form.broken == "quantized weights" and name == "k":
            y.producer().replace_input_with(1, graph.constant("int8", np.ones(_shape(w), np.int8)))
        if form.broken == "shuffled weights":
            y.producer().attributes["weightsFormat"] = ir.AttrInt64("weightsFormat", 1)
        if form.broken == "activation":
            y.producer().attributes["fusedActivationFunction"] = ir.AttrInt64("fusedActivationFunction", 1)
        return self.transpose(self.reshape(y, [1, form.T, heads, form.H]), [0, 2, 1, 3])

    def reshape(self, x: ir.Value, shape: list[int]) -> ir.Value:
        if list(_shape(x)) == shape:
            return x
        to = self.graph.constant("shape", np.array(shape, np.int32))
        return self.graph.op("RESHAPE", [x, to], shape)

    def transpose(self, x: ir.Value, axes: list[int]) -> ir.Value:
        order = self.graph.constant("axes", np.array(axes, np.int32))
        return self.graph.op("TRANSPOSE", [x, order], [_shape(x)[axis] for axis in axes])

    def scaled(self, x: ir.Value) -> ir.Value:
        size = self.form.H + 1 if self.form.broken == "scale" else self.form.H
        if self.form.scale == "divide":
            return self.graph.op("DIV", [x, self.graph.constant("root", np.float32(size**0.5))], _shape(x))
        return self.graph.op("MUL", [x, self.graph.constant("scale", np.float32(size**-0.5))], _shape(x))

    def tables(self, name: str) -> tuple[ir.Value, ir.Value]:
        """cos, sin [1, 1, T, H] of the position plus 0 .. T-1."""
        form, graph = self.form, self.graph
        assert self.position is not None
        if form.position_per_token:
            rows = graph.op("CAST", [self.position], [form.T], ir.DataType.FLOAT, name=f"{name}float")
            position = self.reshape(rows, [form.T, 1])
        else:
            start = graph.op("CAST", [self.position], [1], ir.DataType.FLOAT, name=f"{name}float")
            steps = graph.constant("steps", np.arange(form.T, dtype=np.float32)[:, None])
            position = graph.op("ADD", [steps, start], [form.T, 1])
        base = 50.0 if name else 100.0
        frequency = graph.constant(
            "frequency", np.tile(base ** -np.arange(0, 1, 2 / form.H), 2).astype(np.float32)
        )
        angle = graph.op("MUL", [position, frequency], [form.T, form.H])
        cos, sin = (graph.op(which, [angle], [form.T, form.H]) for which in ("COS", "SIN"))
        return self.reshape(cos, [1, 1, form.T, form.H]), self.reshape(sin, [1, 1, form.T, form.H])

    def first(self) -> ir.Value:
        """The position of the first token, [1]."""
        assert self.position is not None
        if not self.form.position_per_token:
            return self.position
        bounds = [self.graph.constant("first", np.array([n], np.int32)) for n in (0, 1)]
        return self.graph.op("SLICE", [self.position, *bounds], [1])

    def rotated(self, x: ir.Value, tables: tuple[ir.Value, ir.Value]) -> ir.Value:
        graph, shape, half = self.graph, list(_shape(x)), self.form.H // 2
        size = [*shape[:-1], half]

        def part(begin: int) -> ir.Value:
            bounds = [graph.constant("b", np.array(v, np.int32)) for v in ([0, 0, 0, begin], size)]
            return graph.op("SLICE", [x, *bounds], size)

        lower, upper = part(0), part(half)
        if self.form.broken == "swapped halves":
            lower, upper = upper, lower
        rotated = graph.op("CONCATENATION", [graph.op("NEG", [upper], size), lower], shape, axis=3)
        products = [graph.op("MUL", [y, table], shape) for y, table in zip((x, rotated), tables, strict=True)]
        return graph.op("ADD", products, shape, name="rotated")

    def joined(self, new: ir.Value, name: str) -> ir.Value:
        form = self.form
        if form.join == "none":
            return new
        straight, swap = [0, 1, 2, 3], [0, 2, 1, 3]
        axes = straight if form.layout == "BNTH" else swap
        if form.broken == "cache by column":
            axes = [0, 1, 3, 2]
        if form.broken == "layouts differ" and "value" in name:
            axes = swap
        past = self.past(name, [[1, form.K, form.past, form.H][axis] for axis in axes])
        if form.transposed:
            past, axes = self.transpose(past, swap), swap if axes == straight else straight
        whole = self.join(past, self.transpose(new, axes) if axes != straight else new, name, axes.index(2))
        if form.broken == "updated cache is an output":
            self.more_outputs.append(whole)
        if form.returns_caches:
            present = self.transpose(whole, swap) if form.transposed else whole
            present.name = name.replace("past", "present")
            if form.contract_layout:
                present.meta["role"] = Role("key" if "key" in name else "value", 0, form.contract_layout)  # type: ignore[arg-type]
            self.more_outputs.append(present)
        return self.transpose(whole, axes) if axes != straight else whole

    def past(self, name: str, shape: list[int]) -> ir.Value:
        form, graph = self.form, self.graph
        if form.broken == "one cache for both" and "value" in name:
            return graph.ir.inputs[-1]
        if form.broken == "cache of its own":
            past = graph.value(name, shape)
            past.meta["fields"] = {"isVariable": True}
        else:
            past = graph.input(name, shape)
        if form.contract_layout:
            past.meta["role"] = Role("key_cache" if "key" in name else "value_cache", 0, form.contract_layout)  # type: ignore[arg-type]
        if form.broken == "cache read elsewhere":
            self.more_outputs.append(graph.op("NEG", [past], shape))
        if form.broken == "cache passed through":
            self.more_outputs.append(past)
        return past

    def join(self, past: ir.Value, new: ir.Value, name: str, axis: int) -> ir.Value:
        form, graph = self.form, self.graph
        if form.join == "concat":
            parts = [new, past] if form.broken == "concatenated in front" else [past, new]
            shape = _shape(past)
            shape[axis] += form.T
            return graph.op("CONCATENATION", parts, shape, axis=axis)
        position = self.first()
        if form.broken == "value cache elsewhere" and "value" in name:
            position = self.position_2
        if form.broken in ("written one row on", "written at the last query"):
            steps = 1 if form.broken == "written one row on" else form.T - 1
            on = graph.constant("on", np.array([steps], np.int32 if form.int32 else np.int64))
            position = graph.op("ADD", [position, on], [1])
        if form.broken == "written at row 0":
            position = graph.constant("row 0", np.zeros(1, np.int64))
        start = [graph.constant("zero", np.zeros(1, np.int32))] * 4
        start[axis] = graph.op("CAST", [position], [1], ir.DataType.INT32)
        start_ = graph.op("CONCATENATION", start, [4], axis=0)
        return graph.op("DYNAMIC_UPDATE_SLICE", [past, new, start_], _shape(past))

    def repeated(self, x: ir.Value) -> ir.Value:
        """[1, K, S, H] -> [1, K * G, S, H], each head G times in a row."""
        form = self.form
        _, K, S, H = _shape(x)
        if form.G == 1:
            return x
        if form.broken == "interleave":  # all heads, then all again
            middle, wide = [1, 1, K, S, H], [1, form.G, K, S, H]
        else:
            middle, wide = [1, K, 1, S, H], [1, K, form.G, S, H]
        to = self.graph.constant("wide", np.array(wide, np.int32))
        y = self.graph.op("BROADCAST_TO", [self.reshape(x, middle), to], wide)
        return self.reshape(y, [1, K * form.G, S, H])

    def product(self, q: ir.Value, k: ir.Value, shape: list[int]) -> ir.Value:
        if not self.form.adjoint:
            k = self.transpose(k, [0, 1, 3, 2])
        return self.matmul(q, k, shape, self.form.adjoint)

    def mixed(self, p: ir.Value, v: ir.Value, shape: list[int]) -> ir.Value:
        return self.matmul(p, v, shape, False)

    def matmul(self, x: ir.Value, y: ir.Value, shape: list[int], adjoint: bool) -> ir.Value:
        if self.form.rank == 3:
            x, y = (self.reshape(z, list(_shape(z)[1:])) for z in (x, y))
            return self.reshape(self.graph.op("BATCH_MATMUL", [x, y], shape, adjointRhs=adjoint), [1, *shape])
        return self.graph.op("BATCH_MATMUL", [x, y], [1, *shape], adjointRhs=adjoint)

    def mask(self, S: int, N: int) -> ir.Value | None:
        form, graph = self.form, self.graph
        T = form.T
        if form.broken == "mask by head":
            return graph.constant("mask", np.zeros((1, N, T, S), np.float32))
        if form.mask == "none":
            return None
        if form.mask == "input":
            return graph.input("mask", [1, 1, T, S])
        if form.mask == "ones":
            return graph.constant("mask", np.full((1, 1, T, S), 1, np.float32) * weights(1, 1, T, S, seed=4))
        query, key = np.arange(T)[:, None], np.arange(S)[None, :]
        if form.join == "none":
            return graph.constant("mask", np.where(key <= query, np.float32(0), HIDDEN)[None, None])
        number = np.int32 if form.int32 else np.int64
        if form.mask_form != "slots":
            return self.mask_by_token(number)
        slots = key - query
        if form.join == "concat":  # old rows before the position count, new ones up to the query's own
            slots = np.where(key < form.past, key, np.where(key - form.past <= query, -1, 10**6)) + 0 * query
            limit = self.first()
        else:
            limit = graph.op("ADD", [self.first(), graph.constant("one", number(1))], [1])
        visible = graph.op(
            "LESS",
            [graph.constant("slots", number(slots[None, None])), limit],
            [1, 1, T, S],
            ir.DataType.BOOL,
        )
        choice = [graph.constant("shown", np.float32(0)), graph.constant("hidden", HIDDEN)]
        return graph.op("SELECT_V2", [visible, *choice], [1, 1, T, S], ir.DataType.FLOAT)

    def mask_by_token(self, number: type[np.integer]) -> ir.Value:
        """The mask of a cache that is written, [1, 1, T, S], each row from the position of its query."""
        form, graph = self.form, self.graph
        T, S = form.T, form.past
        assert self.position is not None
        rows = self.position
        steps = np.arange(T, dtype=number) + {"mask one on": 1, "mask one off": -1}.get(form.broken, 0)
        if form.broken == "mask relative":  # to the first token, wherever that is
            rows = graph.constant("rows", steps)
        elif not form.position_per_token:
            rows = graph.op("ADD", [rows, graph.constant("steps", steps)], [T])
        if form.mask_form == "table":
            table = np.triu(np.full((S, S), HIDDEN), 1)
            chosen = graph.op("GATHER", [graph.constant("table", table), rows], [T, S], axis=0)
            return self.reshape(chosen, [1, 1, T, S])
        visible = graph.op(
            "LESS_EQUAL",
            [graph.constant("keys", np.arange(S, dtype=number)), self.reshape(rows, [T, 1])],
            [T, S],
            ir.DataType.BOOL,
        )
        choice = [graph.constant("shown", np.float32(0)), graph.constant("hidden", HIDDEN)]
        mask = graph.op("SELECT_V2", [visible, *choice], [T, S], ir.DataType.FLOAT)
        return self.reshape(mask, [1, 1, T, S])


def _shape(value: ir.Value) -> list[int]:
    assert value.shape is not None
    return list(value.shape.numpy())
