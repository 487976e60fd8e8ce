"""Prefills over fewer cache rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest

from o2o import formats
from o2o.lower.litert import lower_to_litert
from o2o.lower.litert.prefill_buckets import add_prefill_buckets, copy_prefills
from o2o.lower.litert.tuning import tune
from o2o.model import shape_of
from runtime_py.engines.litert.engine import LiteRtEngine
from runtime_py.engines.loading import load_engine
from runtime_py.engines.options import EngineOptions
from tests.o2o.window_graphs import S, T, V, logits_of, window_model
from tests.tolerances import assert_close

FULL = (0, 0)
"""Two layers without a window."""
IDS = np.random.default_rng(6).integers(0, V, S).tolist()


def names_of(lengths: list[int], capacities: list[int], largest: int | None = None) -> list[str]:
    model = window_model(None, [*lengths, 1], FULL)
    prefills = copy_prefills(model)
    assert prefills is not None
    lower_to_litert(model)
    tune(model, capacities)
    names = add_prefill_buckets(model, prefills, largest)
    assert [signature.name for signature in model.signatures[-len(names) :]] == names or not names
    return names


def test_each_prefill_has_the_smallest_capacity_that_holds_it() -> None:
    assert names_of([4, 16, 32], [8, 12, 16, 24], largest=16) == ["prefill_4_8", "prefill_16_16"]
    assert names_of([16], [8]) == []


def test_they_give_what_the_prefills_of_the_model_give() -> None:
    model = window_model(None, [T, 1], FULL)
    prefills = copy_prefills(model)
    assert prefills is not None
    lower_to_litert(model)
    tune(model, [16])
    prefill = next(signature for signature in model.signatures if signature.name == f"prefill_{T}")
    logits = next(name for name, value in prefill.outputs.items() if shape_of(value)[-1] == V)
    prefill.graph.outputs.remove(prefill.outputs.pop(logits))
    assert add_prefill_buckets(model, prefills) == [f"prefill_{T}_16"]
    assert model.signatures[-1].outputs.keys() == prefill.outputs.keys()
    assert {shape_of(value)[2] for value in model.signatures[-1].outputs.values()} == {16}


def test_window_caches_and_prefills_without_caches_have_none() -> None:
    assert copy_prefills(window_model(rows=8, windows=(5, 5))) is None
    assert copy_prefills(window_model(None, [1], FULL)) is None
    assert copy_prefills(window_model(None, [1], FULL, without_caches=8)) is None


@pytest.fixture(scope="module", params=["circle", "tflite"])
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiteRtEngine]:
    model = window_model(None, [2 * T, T, 1], FULL)
    file = tmp_path_factory.mktemp("buckets") / f"model.{request.param}"
    formats.save(model if request.param == "circle" else lower_to_litert(model), file)
    options = EngineOptions(engine="litert", buckets=[12, 24], speculate=False)
    with closing(load_engine(file, options).engine) as loaded:
        assert isinstance(loaded, LiteRtEngine)
        yield loaded


def test_texts_of_any_length_that_grow_through_the_capacities(engine: LiteRtEngine) -> None:
    expected = logits_of(IDS, FULL)
    for length in (1, 3, 9, 12, 13, 24, 25, S):
        with closing(engine.open_session()) as session:
            assert_close(session.prefill(IDS[:length]), expected[length - 1])
            for position in range(length, min(length + 3, S)):
                assert_close(session.decode(IDS[position], position), expected[position])
            assert_close(session.prefill(IDS, min(length, S - 1)), expected[-1])
            assert_close(session.prefill(IDS[:5], 2), expected[4])


def test_rows_that_are_in_a_bucket_alone(engine: LiteRtEngine) -> None:
    expected = logits_of(IDS, FULL)
    with closing(engine.open_session()) as first, closing(engine.open_session()) as second:
        first.prefill(IDS[:7])
        assert [*first.kv_caches.allocated] == [12]
        second.write_rows(first.read_rows(7), 0, 7)
        assert_close(second.decode(IDS[7], 7), expected[7])
        second.copy_rows(first, 0, 5)
        assert_close(second.prefill(IDS[:20], 5), expected[19])
        assert_close(first.prefill(IDS[:20], 7), expected[19])
