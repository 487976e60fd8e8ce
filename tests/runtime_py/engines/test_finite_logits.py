"""Logits that are NaN or infinite end generation on each engine; masks of -inf do not."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from o2o.errors import ModelError
from runtime_py.engines.engine import Engine
from runtime_py.engines.finite_logits import check_logits
from runtime_py.engines.litert.engine import LiteRtEngine
from runtime_py.engines.onnx.engine import OnnxEngine
from runtime_py.engines.registry import installed
from runtime_py.model.contract import Contract
from tests.runtime_py.toy import VOCAB, Toy
from tests.runtime_py.toy_onnx import toy_onnx

INF, NAN = np.inf, np.nan


@pytest.mark.parametrize("row", [[1.0, NAN, 2.0], [INF, 1.0, 2.0], [-INF, -INF, -INF], [NAN, -INF, INF]])
def test_logits_that_cannot_be_compared(row):
    logits = np.array(row, np.float32)
    with pytest.raises(ModelError, match="the logits after token 5 are "):
        check_logits(logits, 4)
    several = np.stack([np.zeros(3, np.float32), logits, logits])
    with pytest.raises(ModelError, match="the logits after token 6 are "):
        check_logits(several, 4)


def test_masks_are_legal():
    logits = np.array([-INF, 1.0, -INF], np.float32)
    assert check_logits(logits, 0) is logits
    rows = np.stack([logits, logits])
    assert check_logits(rows, 0) is rows


def load(name: str, toy: Toy) -> Engine:
    if name not in installed():
        pytest.skip("not installed")
    if name == "litert":
        return LiteRtEngine(toy.file, Contract.parse(toy.contract))
    return OnnxEngine(toy_onnx(toy).SerializeToString())


@pytest.mark.parametrize("damage", [NAN, INF])
@pytest.mark.parametrize("engine", ["litert", "onnx"])
def test_engines_end_with_an_error(engine, damage):
    toy = Toy(prefill_length=0, cached_lengths=[4], capacity=8, damage=damage)
    with (
        contextlib.closing(load(engine, toy)) as loaded,
        contextlib.closing(loaded.open_session()) as session,
    ):
        session.prefill([1, 2, 3])
        with pytest.raises(ModelError, match=r"the logits after token 4 are .*the weights are damaged"):
            session.decode(VOCAB - 1, 3)
        with pytest.raises(ModelError, match="the logits after token 2 are"):
            session.prefill([1, VOCAB - 1])
