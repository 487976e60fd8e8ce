"""Growing caches become static ones: decoders by hand, which `--check` compares behind several pasts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from o2o import filters, formats
from o2o.contract import role_of
from o2o.model import dims_of
from tests.runtime_py.toy_decoder import POSITIONS as POSITIONS_OF_TOY
from tests.runtime_py.toy_decoder import Form, toy_decoder

onnxruntime = pytest.importorskip("onnxruntime")

V, D, K, H = 11, 8, 2, 4
PAST = f"float[B, {K}, P, {H}] past_key_values_0_key, float[B, {K}, P, {H}] past_key_values_0_value"
PRESENT = f"float[B, {K}, S, {H}] present_0_key, float[B, {K}, S, {H}] present_0_value"
PROJECT = """
    x = Gather <axis = 0> (table, ids)
    xp = Add (x, places)
    q4 = Reshape (xp, split)
    q = Transpose <perm = [0, 2, 1, 3]> (q4)
    kx = MatMul (xp, wk)
    k4 = Reshape (kx, split)
    k = Transpose <perm = [0, 2, 1, 3]> (k4)
    present_0_key = Concat <axis = 2> (past_key_values_0_key, k)
    present_0_value = Concat <axis = -2> (past_key_values_0_value, q)
    kt = Transpose <perm = [0, 1, 3, 2]> (present_0_key)
    scores = MatMul (q, kt)
"""
LAST = """
    rows = MatMul (weights, present_0_value)
    rows4 = Transpose <perm = [0, 2, 1, 3]> (rows)
    hidden = Reshape (rows4, joined)
    logits = MatMul (hidden, head)
"""
LENGTHS = """
    past_shape = Shape (past_key_values_0_key)
    p = Gather (past_shape, two)
    ids_shape = Shape (ids)
    t = Gather (ids_shape, one)
    total = Add (p, t)
"""
POSITIONS = """
    at = Range (p, total, one)
    keys = Range (zero, total, one)
    column = Unsqueeze (at, last_axis)
    seen = LessOrEqual (keys, column)
    masked = Where (seen, scores, lowest)
    weights = Softmax <axis = -1> (masked)
"""
TABLE = "places = Gather <axis = 0> (place_table, at)"


def decoder(before: str, between: str, inputs: str = "", opset: int = 17) -> onnx.ModelProto:
    """A decoder of one layer. `before` computes `places` [T, D], `between` the attention weights."""
    text = f"""
    <ir_version: 8, opset_import: ["" : {opset}]>
    g (int64[B, T] ids, {inputs}{PAST}) => (float[B, T, {V}] logits, {PRESENT})
    <int64 zero = {{0}}, int64 one = {{1}}, int64 two = {{2}}, int64[1] last_axis = {{-1}},
     float lowest = {{-10000.0}}, int64[4] split = {{0, 0, {K}, {H}}}, int64[3] joined = {{0, 0, {D}}}>
    {{ {before} {PROJECT} {between} {LAST} }}
    """
    proto = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for name, shape in (("table", (V, D)), ("place_table", (64, D)), ("wk", (D, D)), ("head", (D, V))):
        array = random.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


def convert(proto: onnx.ModelProto, folder: Path, tokens: int = 3, rows: int = 16) -> int:
    """Run the filter with `--check`, which compares both models on ONNX Runtime."""
    (folder / "in.onnx").write_bytes(proto.SerializeToString())
    arguments = ["--cache-length", str(rows), "--tokens", str(tokens), "--check"]
    return filters.load("fix_shape").main(
        [*arguments, str(folder / "in.onnx"), "-o", str(folder / "out.onnx")]
    )


def causal(**options: int) -> onnx.ModelProto:
    at = LENGTHS + POSITIONS.split("masked")[0]
    return decoder(at + TABLE, "masked" + POSITIONS.split("masked", 1)[1], **options)


def test_the_interface(tmp_path: Path) -> None:
    assert convert(causal(), tmp_path) == 0
    graph = formats.load(tmp_path / "out.onnx").graphs[0]
    assert {value.name: dims_of(value) for value in graph.inputs} == {
        "ids": (1, 3),
        "position": (1,),
        "past_key_values_0_key": (1, K, 16, H),
        "past_key_values_0_value": (1, K, 16, H),
    }
    assert [value.name for value in graph.outputs] == ["logits", "present_0_key", "present_0_value"]
    roles = [role_of(value) for value in (*graph.inputs, *graph.outputs)]
    assert [role.kind for role in roles if role] == [
        *("tokens", "position", "key_cache", "value_cache"),
        *("logits", "key", "value"),
    ]
    onnx.checker.check_model(tmp_path / "out.onnx", full_check=True)


@settings(deadline=None, max_examples=4)
@given(st.integers(1, 6), st.integers(10, 30))
def test_any_sizes(tmp_path_factory: pytest.TempPathFactory, tokens: int, rows: int) -> None:
    assert convert(causal(opset=13 + tokens), tmp_path_factory.mktemp("sizes"), tokens, rows) == 0


def test_rows_that_nothing_hides_get_a_mask(tmp_path: Path) -> None:
    """One token sees all keys of a growing graph, so an exporter may leave the mask out."""
    plain = decoder(LENGTHS + "at = Range (p, total, one)" + TABLE, "weights = Softmax <axis = -1> (scores)")
    assert convert(plain, tmp_path, tokens=1) == 0
    operators = {node.op_type for node in formats.load(tmp_path / "out.onnx").graphs[0]}
    assert "LessOrEqual" in operators


def test_an_attention_mask_and_position_ids_are_computed(tmp_path: Path) -> None:
    between = """
        float_mask = Cast <to = 1> (attention_mask)
        hidden_keys = Sub (float_one, float_mask)
        offsets = Mul (hidden_keys, lowest)
        wide = Unsqueeze (offsets, axes)
        with_offsets = Add (scores, wide)
        masked = Where (seen, with_offsets, lowest)
        weights = Softmax <axis = -1> (masked)
    """
    before = LENGTHS + POSITIONS.split("masked")[0] + "places = Gather <axis = 0> (place_table, position_ids)"
    inputs = "int64[B, S] attention_mask, int64[B, T] position_ids, "
    proto = decoder(before, between, inputs)
    for name, array in (("float_one", np.float32(1)), ("axes", np.asarray([1, 2], np.int64))):
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    assert convert(proto, tmp_path) == 0
    assert [value.name for value in formats.load(tmp_path / "out.onnx").graphs[0].inputs][:2] == [
        "ids",
        "position",
    ]


def test_rows_of_a_table_that_move_with_the_past(tmp_path: Path) -> None:
    """GPT-2 of older exports: bias[:, P:P+T, :P+T], and the last T rows of a table of all positions."""
    before = (
        LENGTHS
        + """
        p1 = Unsqueeze (p, first_axis)
        total1 = Unsqueeze (total, first_axis)
        whole = Slice (place_table, first_axis, total1, first_axis)
        minus_t = Neg (t)
        start = Unsqueeze (minus_t, first_axis)
        places = Slice (whole, start, largest, first_axis)
        queries = Slice (triangle, p1, total1, first_axis)
        seen = Slice (queries, first_axis, total1, one1)
    """
    )
    between = "masked = Where (seen, scores, lowest) weights = Softmax <axis = -1> (masked)"
    proto = decoder(before, between)
    constants = {
        "first_axis": np.asarray([0]),
        "one1": np.asarray([1]),
        "largest": np.asarray([2**31 - 1]),
        "triangle": np.tril(np.ones((64, 64), bool)),
    }
    for name, array in constants.items():
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    assert convert(proto, tmp_path) == 0
    operators = [node.op_type for node in formats.load(tmp_path / "out.onnx").graphs[0]]
    assert "Gather" in operators


def causal_without_past(hidden: str = "lowest") -> onnx.ModelProto:
    """A mask [T,T] that is expanded to [T,P+T], as onnxruntime-genai's builder writes it."""
    before = f"""
        {LENGTHS}
        at = Range (p, total, one)
        {TABLE}
        run = Range (zero, t, one)
        column = Unsqueeze (run, last_axis)
        seen = LessOrEqual (run, column)
        float_zero = Cast <to = 1> (zero)
        own = Where (seen, float_zero, {hidden})
        t1 = Unsqueeze (t, first_axis)
        total1 = Unsqueeze (total, first_axis)
        size = Concat <axis = 0> (t1, total1)
        mask = Expand (own, size)
        masked = Add (scores, mask)
    """
    proto = decoder(before.split("masked")[0], "masked = Add (scores, mask)" + POSITIONS.split("lowest)")[1])
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "first_axis"))
    return proto


def logits(file: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """Run a model with caches of zeros. Their rows are 0 in a model that grows."""
    session = onnxruntime.InferenceSession(file)
    caches = {value.name: value.shape for value in session.get_inputs() if value.name.startswith("past")}
    shapes = {name: [1, K, dims[2] if isinstance(dims[2], int) else 0, H] for name, dims in caches.items()}
    feeds = {**{name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, **feeds}
    return np.asarray(session.run(["logits"], feeds)[0])


def test_a_causal_mask_of_a_run_without_a_past(tmp_path: Path) -> None:
    (tmp_path / "in.onnx").write_bytes(causal_without_past().SerializeToString())
    arguments = ["--cache-length", "16", "--tokens", "3", str(tmp_path / "in.onnx")]
    assert filters.load("fix_shape").main([*arguments, "-o", str(tmp_path / "out.onnx")]) == 0
    ids = np.array([[1, 2, 3]])
    expected = logits(tmp_path / "in.onnx", {"ids": ids})
    actual = logits(tmp_path / "out.onnx", {"ids": ids, "position": np.array([0])})
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_a_mask_of_a_run_that_is_not_causal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proto = causal_without_past()
    next(node for node in proto.graph.node if node.op_type == "LessOrEqual").op_type = "Equal"
    assert convert(proto, tmp_path) == 1
    assert "several tokens only without a past; give --tokens 1" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "dims"), [("past_shape", []), ("kt", [1, 2]), ("at", [7])])
def test_wrong_shapes_in_the_file(name: str, dims: list[int], tmp_path: Path) -> None:
    proto = causal()
    dtype = onnx.TensorProto.FLOAT if name == "kt" else onnx.TensorProto.INT64
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info(name, dtype, dims))
    (tmp_path / "in.onnx").write_bytes(proto.SerializeToString())
    arguments = ["--cache-length", "16", "--tokens", "3", str(tmp_path / "in.onnx")]
    assert filters.load("fix_shape").main([*arguments, "-o", str(tmp_path / "out.onnx")]) == 0
    onnx.checker.check_model(tmp_path / "out.onnx", full_check=True)


def test_attention_with_caches_of_its_own(tmp_path: Path) -> None:
    text = f"""
    <ir_version: 11, opset_import: ["" : 23]>
    g (int64[B, T] ids, {PAST}) => (float[B, T, {V}] logits, {PRESENT})
    <int64[4] split = {{0, 0, {K}, {H}}}, int64[3] joined = {{0, 0, {D}}}>
    {{
        x = Gather <axis = 0> (table, ids)
        q4 = Reshape (x, split)
        q = Transpose <perm = [0, 2, 1, 3]> (q4)
        rows, present_0_key, present_0_value = Attention <is_causal = 1> (
            q, q, q, , past_key_values_0_key, past_key_values_0_value)
        rows4 = Transpose <perm = [0, 2, 1, 3]> (rows)
        hidden = Reshape (rows4, joined)
        logits = MatMul (hidden, head)
    }}
    """
    proto = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for name, shape in (("table", (V, D)), ("head", (D, V))):
        array = random.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    assert convert(proto, tmp_path) == 0


def test_what_grows_and_is_no_cache_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mask of ones for the past and a triangle for the new tokens: the triangle would stay at the end."""
    before = (
        LENGTHS
        + "at = Range (p, total, one)"
        + TABLE
        + """
        t1 = Unsqueeze (t, first_axis)
        p1 = Unsqueeze (p, first_axis)
        square = Concat <axis = 0> (t1, t1)
        oblong = Concat <axis = 0> (t1, p1)
        ones = ConstantOfShape (square)
        flat = Expand (float_one, oblong)
        triangle = Trilu <upper = 0> (ones)
        mask = Concat <axis = 1> (flat, triangle)
    """
    )
    between = "masked = Add (scores, mask) weights = Softmax <axis = -1> (masked)"
    proto = decoder(before, between)
    for name, array in (("first_axis", np.asarray([0])), ("float_one", np.float32(1))):
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    assert convert(proto, tmp_path) == 1
    assert "appends to something that grows" in capsys.readouterr().err
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [(6, "too short for runs of 3 tokens"), (2, "too short")],
)
def test_a_capacity_without_room(
    rows: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(causal(), tmp_path, rows=rows) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_input_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = LENGTHS + POSITIONS.split("masked")[0] + "places = Mul (scale, shift)"
    proto = decoder(before, "masked" + POSITIONS.split("masked", 1)[1], f"float[{D}] shift, ")
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(D, np.float32), "scale"))
    assert convert(proto, tmp_path) == 1
    assert "shift" in capsys.readouterr().err


def test_a_model_without_caches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[B] x) => (float[B] y) { y = Neg (x) }'
    )
    assert convert(proto, tmp_path) == 1
    assert "no input is a KV cache that grows" in capsys.readouterr().err


FORMS = {
    "the position of the first token": Form(position="first"),
    "positions by the rows of the cache": Form(position="none"),
    "no mask for several tokens": Form(causal=False),
    "a branch without caches": Form(branch=True, keep=True, position="none"),
    "one token a run": Form(length=1),
    "caches of another dtype": Form(cache_dtype=onnx.TensorProto.FLOAT16),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forms_of_exporters(form: Form, tmp_path: Path) -> None:
    assert convert(toy_decoder(form), tmp_path, tokens=form.length or 3) == 0
    graph = formats.load(tmp_path / "out.onnx").graphs[0]
    assert {value.name for value in graph.inputs} == {
        *("input_ids", "position", "past_key_values.0.key", "past_key_values.0.value")
    }


@pytest.mark.parametrize(
    ("form", "rows", "code", "message"),
    [
        (Form(cache="static"), 16, 1, "does not grow: leave --cache-length out"),
        (Form(cache="window"), 16, 1, "takes rows of the past whose number depends on the past"),
        (Form(cache="none"), 16, 1, "no input is a KV cache that grows"),
        (Form(length=1), 16, 2, "give --tokens 1"),
        (Form(), POSITIONS_OF_TOY + 1, 2, f"give --cache-length {POSITIONS_OF_TOY} or less"),
    ],
)
def test_decoders_without_a_static_form(
    form: Form, rows: int, code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(toy_decoder(form), tmp_path, rows=rows) == code
    assert message in capsys.readouterr().err


def test_a_capacity_beyond_the_angles_of_a_rotation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime reads rows behind a table without an error."""
    caches = "float[1,2,P,16] past_key_values_0_key, float[1,2,P,16] past_key_values_0_value"
    present = "float[1,2,S,16] present_0_key, float[1,2,S,16] present_0_value"
    proto = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        g (int64[1,T] input_ids, int64[1,S] attention_mask, {caches}) => (float[1,T,64] logits, {present})
        <int64[1] one = {{1}}, int64 place = {{1}}> {{
            x = Gather (table, input_ids)
            count = ReduceSum (attention_mask, one)
            last = Sub (count, one)
            last32 = Cast <to = 6> (last)
            lengths = Reshape (last32, one)
            shape = Shape (attention_mask)
            total = Gather (shape, place)
            total32 = Cast <to = 6> (total)
            logits, present_0_key, present_0_value =
                com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2, do_rotary = 1>
                (x, , , past_key_values_0_key, past_key_values_0_value, lengths, total32, cosines, sines)
        }}"""
    )
    for name, shape in (("table", (V, 128)), ("cosines", (9, 8)), ("sines", (9, 8))):
        proto.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    assert convert(proto, tmp_path, rows=10) == 2
    assert "cosines has 9 rows, one for each position: give --cache-length 9" in capsys.readouterr().err
    assert convert(proto, tmp_path, rows=9) == 0
