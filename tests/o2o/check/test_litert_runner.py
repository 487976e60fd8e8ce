"""A model on LiteRT, and the facts about its inputs and outputs."""

from __future__ import annotations

import numpy as np

from o2o.check.litert_runner import LiteRtRunner
from o2o.check.runner import IoTensor
from tests.o2o.graphs import decoder, feeds, linear, run


def test_facts_of_inputs() -> None:
    model = decoder()
    decode = next(signature for signature in model.signatures if signature.name == "decode")
    tensors = {name: IoTensor.of(value) for name, value in decode.inputs.items()}
    tokens, cache = tensors["input_ids"], tensors["past_key_0"]
    assert tokens.dtype.kind == "i"
    assert tokens.token_axis is None
    assert tokens.limit > 2, "the number of rows of the embedding table"
    assert cache.role is not None
    assert cache.role.layout is not None
    assert cache.token_axis == cache.role.layout.index("T")


def test_runs_a_signature() -> None:
    model = linear()
    before = [value.name for value in model.graphs[0].outputs]
    runner = LiteRtRunner(model, "the model")
    (name,) = runner.io
    given = feeds(model)
    results = runner.run(name, given).outputs
    for key, expected in run(linear(), given).items():
        np.testing.assert_allclose(results[key], expected, rtol=1e-5)
    assert {tensor for tensor, _ in runner.every_tensor(name, given)} >= set(before)
