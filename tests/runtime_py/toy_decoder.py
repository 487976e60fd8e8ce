"""A decoder of one layer in ONNX as other tools export it, in the forms that they choose, and its logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

V, H, POSITIONS, ROWS = 12, 4, 40, 24
_numbers = np.random.default_rng(3)
EMBEDDING = _numbers.standard_normal((V, H)).astype(np.float32)
VALUES = _numbers.standard_normal((V, H)).astype(np.float32)
TURNS = _numbers.standard_normal((POSITIONS, H)).astype(np.float32)
HEAD = _numbers.standard_normal((H, V)).astype(np.float32)
NAMES = {
    "ids": "input_ids",
    "mask": "attention_mask",
    "position": "position_ids",
    "past_key": "past_key_values.0.key",
    "past_value": "past_key_values.0.value",
    "present_key": "present.0.key",
    "present_value": "present.0.value",
    "logits": "logits",
}


@dataclass(frozen=True)
class Form:
    """How the decoder is exported.

    Attributes:
        cache: `grows`; `static`: written by ScatterND; `scatter`: by TensorScatter; `window`: only the last
            rows are returned; `stacked`: keys and values are one tensor, as of GPT-2; `none`: no caches.
        position: `ids` [1, T]; `axes` [3, 1, T]; `first` [1]; `none`: computed from the rows of the cache.
        mask: Whether there is an attention mask.
        causal: Whether several tokens in one run are masked.
        branch: Whether an If has a branch for the beginning, which ignores the caches.
        keep: Whether it takes the number of logits.
        length: T, where it is fixed.
        cache_dtype: The dtype of the caches.
        names: Other names than those of `NAMES`.
        more: Names of inputs that are no inputs of a text decoder.
    """

    cache: str = "grows"
    position: str = "ids"
    mask: bool = True
    causal: bool = True
    branch: bool = False
    keep: bool = False
    length: int | None = None
    cache_dtype: int = TensorProto.FLOAT
    names: dict[str, str] = field(default_factory=dict)
    more: tuple[str, ...] = ()


def expected(ids: Sequence[int]) -> np.ndarray:
    """The logits [T, V] of a text."""
    tokens = np.array(ids)
    keys, values = EMBEDDING[tokens] * TURNS[: len(tokens)], VALUES[tokens]
    scores = np.where(np.tri(len(tokens), dtype=bool), EMBEDDING[tokens] @ keys.T, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ values @ HEAD


_ROWS = """
    e = Gather (embedding, ids)
    length = Shape <start = 1> (ids)
    {position}
    turns = Gather (table, positions)
    k0 = Mul (e, turns)
    k = Unsqueeze (k0, one)
    v0 = Gather (values, ids)
    v = Unsqueeze (v0, one)
"""
_POSITIONS = {
    "ids": "positions = Identity (position)",
    "axes": "positions = Gather (position, origin)",
    "first": """
    p0 = Squeeze (position)
    p1 = Squeeze (length)
    p2 = Add (p0, p1)
    p3 = Range (p0, p2, unit)
    positions = Unsqueeze (p3, zero)""",
    "none": """
    p_ = Shape <start = 2, end = 3> (past_key)
    p0 = Squeeze (p_)
    p1 = Squeeze (length)
    p2 = Add (p0, p1)
    p3 = Range (p0, p2, unit)
    positions = Unsqueeze (p3, zero)""",
}
_GROWS = """
    {to}_past = Cast <to = 1> (past_{to})
    {to} = Concat <axis = 2> ({to}_past, {rows})
    {to}_all = Cast <to = {dtype}> ({to})
    present_{to} = {cut}
"""
_WHOLE = "    {to} = Identity ({rows})\n    present_{to} = Cast <to = {dtype}> ({to})\n"
_STATIC = """
    {to}_at = Reshape (positions, column)
    {to}_turned = Transpose <perm = [2, 0, 1, 3]> (past_{to})
    {to}_rows = Transpose <perm = [2, 0, 1, 3]> ({rows})
    {to}_new = ScatterND ({to}_turned, {to}_at, {to}_rows)
    {to} = Transpose <perm = [1, 2, 0, 3]> ({to}_new)
    present_{to} = Identity ({to})
"""
_SCATTER = """
    {to}_at = Slice (positions, zero, one, one)
    {to}_first = Reshape ({to}_at, minus)
    present_{to} = TensorScatter <axis = 2> (past_{to}, {rows}, {to}_first)
    {to} = Identity (present_{to})
"""
_STACKED = (
    "past_key = Gather (past, origin)\n past_value = Gather (past, unit)\n",
    "ks = Unsqueeze (present_key, zero)\n vs = Unsqueeze (present_value, zero)\n"
    "present = Concat <axis = 0> (ks, vs)\n",
)
"""Nodes before and after those of two caches."""
_ATTEND = """
    turned = Transpose <perm = [0, 1, 3, 2]> (key)
    q = Unsqueeze (e, one)
    scores = MatMul (q, turned)
    keys_ = Shape <start = 2, end = 3> (key)
    keys = Squeeze (keys_)
    {first}
    last = Add (first, keys)
    slots = Range (first, last, unit)
    queries = Unsqueeze (positions, places)
    seen = LessOrEqual (slots, {queries})
    {mask}
    hidden = Where (visible, scores, low)
    weights = Softmax (hidden)
    y = MatMul (weights, value)
    flat = Squeeze (y, one)
    {keep}
    logits = MatMul (chosen, head)
"""
_MASKED = """
    m0 = Cast <to = 9> (mask)
    m1 = Unsqueeze (m0, one_two)
    m2 = {cut}
    visible = And (seen, m2)"""


def toy_decoder(form: Form) -> onnx.ModelProto:
    """The model."""
    static = form.cache in ("static", "scatter")
    parts = {}
    cut = {"window": "Slice (key_all, minus_five, large, two)"}.get(form.cache, "Identity ({to}_all)")
    template = {"static": _STATIC, "scatter": _SCATTER}.get(form.cache, _GROWS)
    for name, text in (("cached", template), ("whole", _WHOLE)):
        parts[name] = "".join(
            text.replace("{cut}", cut)
            .replace("key_all", "{to}_all")
            .format(to=to, rows=rows, dtype=form.cache_dtype)
            for to, rows in (("key", "k"), ("value", "v"))
        )
    first = "first = Identity (origin)"
    if form.cache == "window":  # the first key that is there
        first = "f0 = ReduceMax <keepdims = 0> (positions)\n f1 = Add (f0, unit)\n first = Sub (f1, keys)"
    whole = form.cache == "none"
    masked = _MASKED.format(
        cut="Slice (m1, minus_keys, large, three)" if form.cache == "window" else "Identity (m1)"
    )
    if form.cache == "window":
        masked = "minus_keys = Neg (keys_)\n" + masked
    attend = _ATTEND.format(
        first=first,
        queries="queries" if form.causal else "everything",
        mask=masked if form.mask else "visible = Identity (seen)",
        keep=(
            "n0 = Neg (keep)\n n1 = Reshape (n0, minus)\n chosen = Slice (flat, n1, large, one)"
            if form.keep
            else "chosen = Identity (flat)"
        ),
    )
    rows = _ROWS.format(position=_POSITIONS["ids" if whole and form.position == "none" else form.position])
    if form.branch:
        branches = {}
        for name, part in (("then_branch", parts["cached"]), ("else_branch", parts["whole"])):
            text = f"g () => (float x) {{{part}{attend}}}"
            graph = onnx.parser.parse_graph(text)
            del graph.output[:]
            graph.output.extend(
                helper.make_empty_tensor_value_info(one) for one in ("logits", "present_key", "present_value")
            )
            for node in graph.node:  # names must differ from those around
                node.output[:] = [f"{name}_{one}" for one in node.output]
            made = {one.removeprefix(f"{name}_") for node in graph.node for one in node.output}
            for node in graph.node:
                node.input[:] = [f"{name}_{one}" if one in made else one for one in node.input]
            for output in graph.output:
                output.name = f"{name}_{output.name}"
            graph.name = name
            branches[name] = graph
        nodes = list(onnx.parser.parse_graph(f"g () => (float x) {{{rows}}}").node)
        outputs = ["logits", "present_key", "present_value"]
        nodes.append(helper.make_node("If", ["use_cache_branch"], outputs, **branches))
    else:
        before, after = _STACKED if form.cache == "stacked" else ("", "")
        body = f"{before}{rows}{parts['whole' if whole else 'cached']}{after}{attend}"
        nodes = list(onnx.parser.parse_graph(f"g () => (float x) {{{body}}}").node)
    T = form.length or "sequence_length"
    cache = ["batch_size", 1, ROWS if static else "past_sequence_length", H]
    after = [*cache[:2], cache[2] if static else "total_sequence_length", H]
    integer, floating = TensorProto.INT64, form.cache_dtype
    inputs = [("ids", integer, ["batch_size", T])]
    if form.mask:
        inputs.append(("mask", integer, ["batch_size", ROWS if static else "total"]))
    if form.position != "none" or whole:
        dims = {"first": [1], "axes": [3, "batch_size", T]}.get(form.position, ["batch_size", T])
        inputs.append(("position", integer, dims))
    if form.branch:
        inputs.append(("use_cache_branch", TensorProto.BOOL, [1]))
    if form.keep:
        inputs.append(("keep", integer, []))
    outputs_ = [("logits", TensorProto.FLOAT, ["batch_size", "kept" if form.keep else T, V])]
    if form.cache == "stacked":
        inputs.append(("past", floating, [2, *cache]))
        outputs_.append(("present", floating, [2, *after]))
    elif not whole:
        inputs += [(name, floating, cache) for name in ("past_key", "past_value")]
        outputs_ += [(name, floating, after) for name in ("present_key", "present_value")]
    inputs += [(name, TensorProto.FLOAT, ["batch_size", 3, 8, 8]) for name in form.more]
    if form.more:
        nodes.append(helper.make_node("Shape", [form.more[0]], ["unused"]))
    constants = {
        "embedding": EMBEDDING,
        "values": VALUES,
        "table": TURNS,
        "head": HEAD,
        "one": np.array([1]),
        "zero": np.array([0]),
        "two": np.array([2]),
        "three": np.array([3]),
        "minus": np.array([-1]),
        "minus_five": np.array([-5]),
        "column": np.array([-1, 1]),
        "large": np.array([1 << 40]),
        "unit": np.array(1),
        "origin": np.array(0),
        "places": np.array([1, 3]),
        "one_two": np.array([1, 2]),
        "everything": np.array(1 << 40),
        "low": np.array(-1e9, np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "toy",
        *(
            [helper.make_tensor_value_info(name, dtype, dims) for name, dtype, dims in items]
            for items in (inputs, outputs_)
        ),
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    names = {**NAMES, "past": "past_0", "present": "present_0", "keep": "num_logits_to_keep", **form.names}
    _rename(graph, names)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    onnx.checker.check_model(model)
    return model


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            _rename(attribute.g, names)
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)


def write_decoder(form: Form, path: Path) -> Path:
    """Write the model to a file."""
    onnx.save(toy_decoder(form), path)
    return path
