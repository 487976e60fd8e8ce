"""Bytes that a decode step reads, and the memory bandwidth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from o2o import formats
from o2o.model import Signature
from runtime_py.benchmark import roofline
from runtime_py.benchmark.roofline import StepBytes, bandwidth, measure_bandwidth, step_bytes
from runtime_py.benchmark.timing import peak_memory
from runtime_py.model.contract import Contract
from tests.o2o.graphs import FLOAT, INT32, Graph, weights
from tests.runtime_py.toy import Toy
from tests.runtime_py.toy_onnx import write_onnx

V, D = 20, 8


def contract() -> Contract:
    return Contract.parse(Toy(prefill_length=0, cached_lengths=[2], capacity=16).contract)


def cache_bytes() -> int:
    return sum(4 * int(np.prod(tensor.shape)) for tensor in contract().decode.caches.values())


@pytest.mark.parametrize("tied", [False, True])
def test_all_weights_except_lookup_tables(tied: bool, tmp_path: Path) -> None:
    graph = Graph("decode")
    ids = graph.input("ids", [1], INT32)
    table = graph.constant("table", weights(V, D))
    head = table if tied else graph.constant("head", weights(V, D, seed=1))
    x = graph.op("GATHER", [table, ids], [1, D], FLOAT, "x")
    x = graph.fc(x, graph.constant("w", weights(D, D)), "y")
    graph.output(graph.fc(x, head, "logits"))
    model = graph.model(format="tflite")
    (decode,) = model.graphs
    model.signatures = [Signature("decode", decode, {"ids": ids}, {"logits": decode.outputs[0]})]
    formats.save(model, tmp_path / "model.tflite")
    step = step_bytes(tmp_path / "model.tflite", contract())
    assert step == StepBytes(4 * (D * D + V * D), cache_bytes() // 16)
    assert step.total(16) == step.weights + cache_bytes()


def test_an_onnx_model_s_weights(tmp_path: Path) -> None:
    toy = Toy(capacity=16)
    file = write_onnx(toy, tmp_path / "model.onnx", external=True)
    small = 1 + 1 + 1 + 4 + 3 + 16  # numbers in int64: shapes and positions
    row = 2 * 4 * toy.keys.shape[1]
    contract, _ = Contract.parse_dynamic(ir.load(file).metadata_props["o2o.contract"])
    assert step_bytes(file, contract) == StepBytes(toy.lm_head.nbytes + 8 * small, row)


def test_measured_bandwidth_is_plausible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "BUFFER", 1 << 20)
    assert 1e7 < measure_bandwidth(1) < 1e13
    assert 1e7 < measure_bandwidth(3) < 1e13


def test_bandwidth_is_measured_in_a_child() -> None:
    before = peak_memory()
    assert 1e7 < bandwidth(1) < 1e13
    assert peak_memory() - before < roofline.BUFFER / 1e6 / 2
