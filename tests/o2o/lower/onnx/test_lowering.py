"""The decode graph in ONNX gives the same for any number of tokens as token by token."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from o2o.contract import Role
from o2o.errors import ModelError
from o2o.lower.onnx import lower_to_onnx
from o2o.model import Model
from o2o.rewriting.builder import add_constant
from tests.o2o.graphs import FLOAT, INT32, Graph
from tests.o2o.graphs import decoder as little_decoder
from tests.o2o.lower.onnx.decoders import Shape, answers, decoder
from tests.o2o.lower.onnx.running import FORMS, Running, checked, chunks
from tests.schemas import ENTRY
from tests.tolerances import assert_close

pytest.importorskip("onnxruntime")

SHAPES = {
    "grouped": Shape(),
    "heads before tokens": Shape(layout="BNTH"),
    "tied": Shape(tied=True),
    "without rotation": Shape(rotate=False),
    "as many heads": Shape(K=4),
    "one head": Shape(N=1, K=1),
    "heads of 8, which GroupQueryAttention does not rotate": Shape(H=8),
    "heads of 4, which it does not take": Shape(N=16, K=16, H=4),
    "heads of 10": Shape(N=6, H=10, D=48, I=72),
    "int32 ids": Shape(ids=INT32),
    "one layer": Shape(layers=1),
}


def ids_of(shape: Shape) -> list[int]:
    found: list[int] = np.random.default_rng(1).integers(0, shape.V, shape.S).tolist()
    return found


def close(logits: np.ndarray, expected: np.ndarray) -> None:
    assert_close(logits.reshape(expected.shape), expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SHAPES)
def test_prefill_and_decode_to_the_end_of_the_capacity(name: str, form: str) -> None:
    shape = SHAPES[name]
    ids = ids_of(shape)
    expected = answers(decoder(shape), ids)
    running = Running(checked(decoder(shape), form))
    for first in ([5, 3], [1], [shape.S]):  # one model for all: what was there before must not be seen
        for cache in running.caches.values():
            cache.update_inplace(np.full(cache.shape(), 100, np.float32))
        for start, stop in chunks(shape.S, first):
            logits = running.step(ids[start:stop], start)
            assert logits.shape == (1, 1, shape.V)
            close(logits, expected[stop - 1])


@pytest.mark.parametrize("form", FORMS)
def test_all_logits(form: str) -> None:
    shape = Shape()
    ids = ids_of(shape)
    expected = answers(decoder(shape), ids)
    running = Running(checked(decoder(shape), form, logits="all"))
    close(running.step(ids[:6], 0), expected[None, :6])
    close(running.step(ids[6:], 6), expected[None, 6:])


@pytest.mark.parametrize("form", FORMS)
def test_caches_that_are_not_in_place(form: str) -> None:
    """The outputs are whole caches, and the inputs are as they were."""
    shape = Shape()
    ids = ids_of(shape)
    session = Running(checked(decoder(shape), form)).session
    past = {
        f"past_{kind}_{i}": np.zeros((1, 2, shape.S, 16), np.float32)
        for kind in ("key", "value")
        for i in (0, 1)
    }
    names = [end.name for end in session.get_outputs()]
    assert names == [
        "logits",
        *(name.replace("past", "present") for name in sorted(past, key=lambda n: n[-1])),
    ]
    for start, stop in chunks(shape.S, [4]):
        feeds = {"tokens": np.array([ids[start:stop]]), "position": np.array([start]), **past}
        before = {name: array.copy() for name, array in past.items()}
        found = dict(zip(names, session.run(None, feeds), strict=True))
        assert all(np.array_equal(past[name], before[name]) for name in past)
        past = {name: found[name.replace("past", "present")] for name in past}
        assert all(
            not array[:, :, stop:].any() and array[:, :, :stop].any(-1).all() for array in past.values()
        )
    close(found["logits"], answers(decoder(shape), ids)[-1])


def test_the_standard_form_by_the_standard() -> None:
    """The reference implementation of ONNX computes the same."""
    from onnx.reference import ReferenceEvaluator

    shape = Shape(S=8, layers=1)
    ids = ids_of(shape)
    evaluator = ReferenceEvaluator(ir.to_proto(checked(decoder(shape), "standard")))
    past = {f"past_{kind}_0": np.zeros((1, 2, 8, 16), np.float32) for kind in ("key", "value")}
    expected = answers(decoder(shape), ids)
    for start, stop in chunks(8, [5]):
        feeds = {"tokens": np.array([ids[start:stop]]), "position": np.array([start]), **past}
        logits, *present = evaluator.run(None, feeds)
        past = dict(zip(past, present, strict=True))
        close(logits, expected[stop - 1])


@pytest.mark.parametrize("form", FORMS)
def test_the_same_bytes_each_time(form: str) -> None:
    first, second = (ir.to_proto(lower_to_onnx(decoder(), form)).SerializeToString() for _ in range(2))
    assert first == second


def test_standard_operators_alone() -> None:
    lowered = lower_to_onnx(decoder(), "standard")
    assert {node.domain for node in lowered.graph} == {""}
    assert dict(lowered.graph.opset_imports) == {"": 24}
    kinds = {node.op_type for node in lowered.graph}
    assert {"Attention", "RMSNormalization", "RotaryEmbedding", "TensorScatter", "Gemm"} <= kinds


def test_onnx_runtimes_own_operators() -> None:
    kinds = [node.op_type for node in lower_to_onnx(decoder(), "ort").graph]
    assert kinds.count("GroupQueryAttention") == 2
    assert kinds.count("SkipSimplifiedLayerNormalization") == 4
    assert kinds.count("Gemm") == 2 * 5 + 1, "queries, keys and values come from one product"
    assert kinds.count("QuickGelu") == 2
    assert not {"Attention", "TensorScatter", "RotaryEmbedding"} & set(kinds)


def test_contract_and_history() -> None:
    model = decoder()
    model.history.append(ENTRY)
    lowered = lower_to_onnx(model, "ort")
    contract = json.loads(lowered.metadata_props["o2o.contract"])["signatures"]["decode"]
    assert contract["inputs"][:3] == [
        {"name": "tokens", "role": "tokens", "dtype": "int64", "shape": [1, "T"]},
        {"name": "position", "role": "position", "dtype": "int64", "shape": [1]},
        {"name": "past_key_0", "role": "key_cache", "layer": 0, "layout": "BNTH", "dtype": "float32",
         "shape": [1, 2, 14, 16]},
    ]  # fmt: skip
    assert contract["outputs"][0] == {
        "name": "logits",
        "role": "logits",
        "dtype": "float32",
        "shape": [1, 1, 67],
    }
    assert [entry["name"] for entry in contract["outputs"][1:3]] == ["present_key_0", "present_value_0"]
    assert contract["outputs"][1]["role"] == "key"
    assert json.loads(lowered.metadata_props["o2o.history"]) == [ENTRY]


def test_a_tied_matrix_is_there_once() -> None:
    shape = Shape(tied=True)
    for form in FORMS:
        constants = lower_to_onnx(decoder(shape), form).graph.initializers.values()
        assert sum(list(value.shape) == [shape.V, shape.D] for value in constants) == 1


def test_the_decode_graph_of_several() -> None:
    """Prefills are not needed."""
    model = decoder()
    prefill = decoder(T=4)
    prefill.signatures[0].name = "prefill"
    both = Model("circle", [*prefill.graphs, *model.graphs], [*prefill.signatures, *model.signatures])
    ids = ids_of(Shape())
    close(Running(checked(both, "ort")).step(ids, 0), answers(decoder(), ids)[-1])


# ---- refusals ---------------------------------------------------------------------------------------


def refusal(model: Model) -> str:
    with pytest.raises(ModelError) as caught:
        lower_to_onnx(model, "standard")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_model_without_a_decode_graph() -> None:
    assert "no decode signature" in refusal(decoder(T=4))
    assert "no tensor has the role value_cache" in refusal(little_decoder())


def test_attention_with_a_mask() -> None:
    model = decoder()
    graph = model.graphs[0]
    node = next(node for node in graph if node.op_type == "ATTENTION")
    mask = add_constant(graph, np.zeros((1, 1, 1, 14), np.float32), "mask")
    node.replace_input_with(7, mask)
    message = refusal(model)
    assert message.startswith("o2o.attention (layers.0.attention/attended in decode")
    assert "position operand" in message, "a mask of zeros shows all rows at every position"


def test_a_cache_that_is_looked_at() -> None:
    model = decoder()
    graph = Graph("unused")
    graph.ir = model.graphs[0]
    total = graph.op(
        "SUM", [graph.ir.inputs[2], graph.constant("axes", np.int32([0, 1, 2, 3]))], [1], FLOAT, "total"
    )
    spoiled = graph.op("ADD", [total, graph.ir.outputs[0]], [1, 1, 67], FLOAT, "spoiled")
    del graph.ir.outputs[0].meta["role"]
    spoiled.meta["role"] = Role("logits")
    graph.ir.outputs[0] = spoiled
    message = refusal(model)
    assert message.startswith("SUM (total in decode")
    assert "present_key_0" in message
    assert message.endswith("which depends on other tokens")


def test_a_softmax_that_is_no_attention() -> None:
    """The reason is that of the attention that is not recognized."""
    model = decoder()
    graph = Graph("unused")
    graph.ir = model.graphs[0]
    rows = graph.op("SOFTMAX", [graph.ir.inputs[2]], [1, 14, 2, 16], FLOAT, "weights", beta=1.0)
    axes = graph.constant("axes", np.int32([0, 1, 2, 3]))
    total = graph.op("SUM", [rows, axes], [1], FLOAT, "total")
    spoiled = graph.op("ADD", [total, graph.ir.outputs[0]], [1, 1, 67], FLOAT, "spoiled")
    del graph.ir.outputs[0].meta["role"]
    spoiled.meta["role"] = Role("logits")
    graph.ir.outputs[0] = spoiled
    message = refusal(model)
    assert "it takes weights, which depends on other tokens; SOFTMAX (weights in decode) is" in message
    assert "not recognized as attention: " in message


def test_a_cache_that_nothing_writes() -> None:
    model = decoder()
    extra = Graph("unused").value("past_key_7", [1, 14, 2, 16])
    extra.meta["role"] = Role("key_cache", 7, "BTNH")
    model.graphs[0].inputs.append(extra)
    assert "no operator writes its cache past_key_7" in refusal(model)


def test_an_input_without_a_role() -> None:
    model = decoder()
    graph = Graph("unused")
    graph.ir = model.graphs[0]
    switch = graph.input("switch", [1, 1, 67])
    logits = graph.ir.outputs[0]
    graph.ir.outputs[0] = graph.op("ADD", [switch, logits], [1, 1, 67], FLOAT, "switched")
    graph.ir.outputs[0].meta["role"] = Role("logits")
    assert "decode: the input switch has no role in the o2o.contract" in refusal(model)


def test_an_output_that_would_get_lost() -> None:
    model = decoder()
    graph = model.graphs[0]
    graph.outputs.append(next(node for node in graph if node.op_type == "LOGISTIC").outputs[0])
    assert (
        "decode: the output layers.0.sigmoid is neither logits nor a cache: remove it with remove.io.py"
        in refusal(model)
    )


def test_operators_that_are_not_known() -> None:
    model = decoder()
    graph = Graph("unused")
    graph.ir = model.graphs[0]
    logits = graph.ir.outputs[0]
    zeros = graph.op("ZEROS_LIKE", [logits], [1, 1, 67], FLOAT, "zeros")
    graph.ir.outputs[0] = graph.op("ADD", [zeros, logits], [1, 1, 67], FLOAT, "all")
    graph.ir.outputs[0].meta["role"] = Role("logits")
    assert refusal(model).startswith("ZEROS_LIKE (zeros in decode)")


def test_weights_that_are_not_there(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from o2o.formats.unbound_tensor import UnboundTensor

    model = decoder()
    value = model.graphs[0].initializers["layers.0.gate.weight"]
    value.const_value = UnboundTensor("gate", tmp_path / "model.safetensors", "gate", FLOAT, (96, 64))
    assert "layers.0.gate.weight is not in the file: run bind.weights.py first" in refusal(model)


def test_tflite() -> None:
    assert "ONNX needs a Circle model" in refusal(replace(decoder(), format="tflite"))
