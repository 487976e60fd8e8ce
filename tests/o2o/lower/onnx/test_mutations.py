"""Mutated decode graphs: each is refused, or its lowering computes the same.

The seeds below are a sample; a search takes O2O_MUTANTS=20000 in the environment.
"""

from __future__ import annotations

import os
import random

import numpy as np
import pytest

from o2o import formats
from o2o.errors import ModelError
from o2o.lower.onnx import lower_to_onnx
from o2o.operators.reference import NotEvaluable
from tests.o2o.lower.onnx.decoders import Shape, answers, decoder
from tests.o2o.lower.onnx.running import FORMS, Running
from tests.o2o.lower.onnx.test_operators import OPERATORS, with_operator
from tests.o2o.mutations import mutate

pytest.importorskip("onnxruntime")

MUTANTS = int(os.environ.get("O2O_MUTANTS", 60))
IDS = [3, 1, 4, 1]


def test_what_is_lowered_means_what_it_meant() -> None:
    lowered = 0
    for seed in range(MUTANTS):
        draw = random.Random(seed)
        shape = Shape(
            N=draw.choice([2, 4]),
            K=draw.choice([1, 2]),
            H=draw.choice([4, 8, 16]),
            D=draw.choice([8, 16]),
            I=draw.choice([4, 8]),
            V=9,
            S=6,
            layers=1,
            layout=draw.choice(["BNTH", "BTNH"]),
            tied=draw.random() < 0.3,
            rotate=draw.random() < 0.7,
        )
        build = OPERATORS[draw.choice(sorted(OPERATORS))]
        model = decoder(shape) if draw.random() < 0.5 else with_operator(build)
        changes = [mutate(model, draw) for _ in range(draw.choice([1, 1, 2, 3]))]
        form = draw.choice(FORMS)
        where = f"{seed} {form}: {'; '.join(filter(None, changes))}"
        data = formats.dumps(model)
        try:
            onnx_model = lower_to_onnx(formats.loads(data), form)
        except ModelError:
            continue
        try:
            expected = answers(formats.loads(data), IDS)
        except (NotEvaluable, ValueError, KeyError):
            continue
        if not np.isfinite(expected).all() or np.abs(expected).max() > 1e4:
            continue
        running = Running(onnx_model)
        found = [running.step(IDS[:3], 0).reshape(-1), running.step(IDS[3:], 3).reshape(-1)]
        lowered += 1
        np.testing.assert_allclose(found, expected[2:], rtol=2e-3, atol=5e-4, err_msg=where)
    assert lowered > MUTANTS / 4, "many mutants are harmless and lowered, or this proves little"
