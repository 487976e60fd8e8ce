"""Unused logits of prefills. For buckets see `tests.o2o.rewriting.test_cache_buckets`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from o2o import formats
from o2o.contract import contract_of
from o2o.filters.merge_circles import MergeCircles
from o2o.lower.litert import lower_to_litert, tuning
from o2o.lower.litert.tuning import remove_prefill_logits
from o2o.model import Model
from runtime_py.engines.litert.engine import load
from runtime_py.engines.model_file import ModelFile
from runtime_py.engines.options import EngineOptions
from tests.o2o.graphs import operators
from tests.o2o.lower.litert.test_lowering import decode_of
from tests.tolerances import assert_close


def package(exported_model, prefill: str) -> Model:
    """Prefill and decode, as Circle."""
    graphs = [
        formats.load(exported_model("grouped", "prefill"))
        if prefill == "prefill"
        else decode_of(exported_model, "grouped", prefill, "BNTH"),
        decode_of(exported_model, "grouped", "concat", "BNTH"),
    ]
    return MergeCircles().merged(graphs, ["prefill.circle", "decode.circle"])


@pytest.mark.parametrize("prefill", ["prefill", "prefill_8"])
def test_decode_gives_the_logits_of_a_prompt(
    exported_model, prefill: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.circle"
    formats.save(package(exported_model, prefill), file)
    engines = []
    for multiplications in (12, 0):
        monkeypatch.setattr(tuning, "MULTIPLICATIONS", multiplications)
        engines.append(load(ModelFile(file), EngineOptions(disk_cache=None)))
    with_logits, without_logits = engines
    assert [one.gives_logits for one in with_logits.contract.prefills] == [True]
    assert [one.gives_logits for one in without_logits.contract.prefills] == [False]
    text = np.random.default_rng(0).integers(3, with_logits.vocab_size, 32).tolist()
    kept_session, left_session = (engine.open_session() for engine in engines)
    for length in (1, 2, 8, 9, 31, 32):
        expected = kept_session.prefill(text[:length])
        assert_close(left_session.prefill(text[:length]), expected)
    for engine in engines:
        engine.close()


def test_what_made_the_logits_is_gone(exported_model, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lower_to_litert(package(exported_model, "prefill_8"))
    before = operators(model)["FULLY_CONNECTED"]
    assert not remove_prefill_logits(model), "the head of a little model is little, too"
    assert operators(model)["FULLY_CONNECTED"] == before
    monkeypatch.setattr(tuning, "MULTIPLICATIONS", 0)
    assert remove_prefill_logits(model)
    # The head, and the last layer but for its keys and values: queries, output, and the MLP.
    assert operators(model)["FULLY_CONNECTED"] == before - 6
    signatures = contract_of(formats.loads(formats.dumps(model)))["signatures"]
    assert ["logits" in {one.get("role") for one in s["outputs"]} for s in signatures.values()] == [
        False,
        True,
    ]
    assert not remove_prefill_logits(model), "there is nothing left"


def test_who_has_no_decode_keeps_them(exported_model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "MULTIPLICATIONS", 0)
    model = lower_to_litert(formats.load(exported_model("grouped", "prefill")))
    assert not remove_prefill_logits(model)
