"""legalize.onert: messages and history. For its results see tests/o2o/lower/onert."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import save_file

from o2o.contract import Role, contract_of
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import Model
from o2o.rewriting.builder import Builder
from o2o.weights.binding import unbound_tensors
from tests.o2o.filters.conftest import Command
from tests.o2o.fused_graphs import Form, attention
from tests.o2o.graphs import FLOAT, Graph, decoder, operators, weights
from tests.o2o.language_model_graphs import language_model
from tests.o2o.lower.onnx import decoders


def test_decode_alone(command: Command) -> None:
    after = command(language_model(), "--check")
    assert [signature.name for signature in after.signatures] == ["decode"]
    left_out, counted, checked = command.said.splitlines()
    assert left_out == "legalize.onert.py: removed prefill_4: onert runs only decode"
    assert counted.startswith(f"legalize.onert.py: {len(language_model().graphs[1])} operators became ")
    assert checked.startswith("legalize.onert.py: checked on LiteRT: ")
    outputs = contract_of(after)["signatures"]["decode"]["outputs"]
    assert [(entry["role"], entry["shape"]) for entry in outputs] == [
        ("logits", [1, 1, 11]),
        ("key", [1, 2, 1, 3]),
        ("value", [1, 2, 1, 3]),
    ]
    assert after.history[-1]["filter"] == "legalize.onert.py"


def test_attention_is_checked_at_both_ends_of_the_cache(command: Command) -> None:
    model = attention(Form(K=2, G=3, layout="BTNH"))
    model.graphs[0].inputs[-1].meta["role"] = Role("position")
    after = command(model, "--check")
    assert not operators(after)["ATTENTION"]
    assert "the same, within" in command.said


def test_weights_are_not_looked_at(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may still be in the checkpoint: the whole of decode passes before bind.weights.py."""
    checkpoint = tmp_path / "model.safetensors"
    save_file({"head": weights(400, 6)}, checkpoint)
    graph = Graph("decode")
    x, cache = graph.input("x", [1, 1, 6]), graph.input("past_key_0", [1, 1, 4, 2])
    cache.meta["role"] = Role("key_cache", 0, "BNTH")
    head = graph.value("head", [400, 6])
    how = {"dtype": FLOAT, "shape": (400, 6), "path": str(checkpoint)}
    head.const_value = UnboundTensor("head", tensor_name="head", stored_shape=(400, 6), **how)
    graph.ir.register_initializer(head)
    graph.output(graph.fc(x, head, "logits"))
    for method in ("chunks", "numpy", "tofile", "tobytes"):
        monkeypatch.setattr(UnboundTensor, method, lambda *_: pytest.fail("was read"))
    after = command(graph.model())
    assert [reference.tensor_name for _, reference in unbound_tensors(after)] == ["head"]


def test_a_refusal_is_one_line(command: Command) -> None:
    code, message = command.refusal(decoder())
    assert code == 1
    assert message == (
        "decode returns 8 rows of key_0, not the new row alone: fuse its attention with fuse.attention.py, "
        "or export with --cache static"
    )


def test_tflite_is_refused(command: Command) -> None:
    code, message = command.refusal(language_model((4,), ("prefill_4",)))
    assert code == 1
    assert message.startswith("no decode signature: exactly one of 'prefill_4'")


def masked(window: int) -> Model:
    """A decoder whose ATTENTION has a mask: the last `window` keys up to the position."""
    model, S = decoders.decoder(), decoders.Shape().S
    (graph,) = model.graphs
    op = Builder(graph, before=graph[0])
    (position,) = (value for value in graph.inputs if value.name == "cache_position")
    here = op.node("CAST", [position], [1], ir.DataType.INT32)
    first = op.node("SUB", [here, op.constant([window], "window", np.int32)], [1])
    keys, shape = op.constant(np.arange(S).reshape(1, 1, 1, S), "keys", np.int32), [1, 1, 1, S]
    bounds = (("GREATER", first), ("LESS_EQUAL", here))
    sides = [op.node(kind, [keys, bound], shape, ir.DataType.BOOL) for kind, bound in bounds]
    visible = op.node("LOGICAL_AND", sides, shape)
    scores = [op.constant(score, "score", np.float32) for score in (0.0, -1e9)]
    mask = op.node("SELECT_V2", [visible, *scores], shape, ir.DataType.FLOAT, name="mask")
    for node in graph:
        if node.op_type == "ATTENTION":
            node.replace_input_with(7, mask)
    return model


@pytest.mark.parametrize("window", [3, 99])
def test_a_mask_that_is_causal(command: Command, window: int) -> None:
    after = command(masked(window), "--check")
    assert "the same" in command.said
    assert not operators(after)["ATTENTION"]
