"""Signatures that verify drafts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest

from o2o import formats
from o2o.lower.litert import lower_to_litert
from o2o.lower.litert.draft_verifiers import make_draft_verifiers
from runtime_py.engines.litert.engine import LiteRtEngine
from runtime_py.engines.loading import load_engine
from runtime_py.engines.options import EngineOptions
from tests.o2o.window_graphs import S, T, V, logits_of, window_model
from tests.tolerances import assert_close

FULL = (0, 0)
"""Two layers without a window."""


@pytest.fixture(scope="module", params=["circle", "tflite"])
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiteRtEngine]:
    model = window_model(None, [2 * T, T, 1], FULL)
    file = tmp_path_factory.mktemp("verifiers") / f"model.{request.param}"
    formats.save(model if request.param == "circle" else lower_to_litert(model), file)
    with closing(load_engine(file, EngineOptions(engine="litert", buckets=[16])).engine) as loaded:
        assert isinstance(loaded, LiteRtEngine)
        yield loaded


def test_the_lengths_are_those_that_fit_into_the_caches_of_decode(engine: LiteRtEngine) -> None:
    fitting = {position: engine.verify_lengths(position) for position in range(S)}
    assert fitting[0] == fitting[32] == [4, 8, 16]
    assert fitting[8] == [4, 8]
    assert fitting[12] == [4]
    assert fitting[13] == []
    assert fitting[S - 4] == [4]
    assert fitting[S - 1] == []


def test_the_logits_have_the_bits_of_decode(engine: LiteRtEngine) -> None:
    ids = np.random.default_rng(5).integers(0, V, S).tolist()
    steps, session = engine.open_session(), engine.open_session()
    expected = [steps.decode(token, position) for position, token in enumerate(ids)]
    assert_close(np.array(expected), logits_of(ids, FULL))
    position = 0
    while position < S:
        count = max([n for n in engine.verify_lengths(position) if position + n <= S], default=1)
        wrong = [(token + 1) % V for token in ids[position : position + count]]
        if count > 1:  # a draft that is rejected leaves nothing behind
            session.verify([ids[position], *wrong[1:]], position)
            rows = session.verify(ids[position : position + count - 1], position)
        else:
            rows = session.decode(ids[position], position)[np.newaxis]
        assert np.array_equal(rows, expected[position : position + len(rows)])
        position += len(rows)


def test_a_model_without_prefill_or_without_caches_has_none() -> None:
    assert make_draft_verifiers(window_model(None, [1], FULL), [4]) is None
    assert make_draft_verifiers(window_model(None, [1], FULL, without_caches=8), [4]) is None
