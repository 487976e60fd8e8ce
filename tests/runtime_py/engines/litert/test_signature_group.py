"""Signatures that are compiled when they are first used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from o2o import formats
from o2o.errors import ModelError
from o2o.streams.disk_cache import DiskCache
from runtime_py.engines import prepared_artifacts
from runtime_py.engines.litert import engine as engine_module
from runtime_py.engines.litert import pack as pack_module
from runtime_py.engines.litert import prepare as prepare_module
from runtime_py.engines.litert.compiled_model import RefusedByLiteRt
from runtime_py.engines.litert.engine import LiteRtEngine
from runtime_py.engines.loading import load_engine
from runtime_py.engines.options import EngineOptions
from tests.o2o.window_graphs import S, T, V, window_model
from tests.runtime_py.engines.litert.test_prepare import lower_and_pack

IDS = np.random.default_rng(5).integers(0, V, S).tolist()
BUCKET = 16


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.circle"
    formats.save(window_model(None, [2 * T, T, 1], (0, 0)), path)
    return path


@pytest.fixture
def cache(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> DiskCache:
    """A cache that has the model with packed weights."""
    monkeypatch.setattr(prepared_artifacts, "MIN_BYTES", 0)
    monkeypatch.setattr(pack_module, "silence_at_exit", lambda: None)
    monkeypatch.setattr(prepare_module, "lower_and_pack_in_child", lower_and_pack)
    cache = DiskCache(tmp_path / "cache")
    load(file, cache).close()
    return cache


@pytest.fixture
def compiled(cache: DiskCache, monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The names of the signatures of each model that is compiled."""
    names: list[set[str]] = []
    compile_model = engine_module.compile_model

    def observed(*args):
        model = compile_model(*args)
        names.append(set(model.get_signature_list()))
        return model

    monkeypatch.setattr(engine_module, "compile_model", observed)
    return names


@pytest.fixture
def expected(file: Path) -> Iterator[LiteRtEngine]:
    """An engine that compiles all signatures at once."""
    with closing(load(file, None)) as engine:
        yield engine


def load(file: Path, cache: DiskCache | None, *, speculate: bool = True) -> LiteRtEngine:
    options = EngineOptions(
        engine="litert", threads=1, buckets=[BUCKET], disk_cache=cache, speculate=speculate
    )
    engine = load_engine(file, options).engine
    assert isinstance(engine, LiteRtEngine)
    return engine


def answers(engine: LiteRtEngine) -> list[np.ndarray]:
    """Logits of each kind of run, in both capacities."""
    with closing(engine.open_session()) as session:
        logits = [session.prefill(IDS[:T]), session.decode(IDS[T], T)]
        logits += [*session.verify(IDS[T + 1 : T + 4], T + 1)]
        logits.append(session.prefill(IDS[: BUCKET + 1]))
        logits += [*session.verify(IDS[BUCKET + 1 : BUCKET + 6], BUCKET + 1)]
        logits.append(session.decode(IDS[BUCKET + 6], BUCKET + 6))
        return logits


def test_each_is_compiled_when_it_is_first_used(file, cache, compiled, expected):
    compiled.clear()
    with closing(load(file, cache)) as engine:
        assert compiled == [{f"decode_{BUCKET}"}]
        first = answers(engine)
        assert np.array_equal(first, answers(expected))
        number = len(compiled)
        lengths = engine.verify_lengths(0)  # they depend on the processor
        used = next(length for length in lengths if length >= 3)
        assert {f"verify_{used}_{BUCKET}"} in compiled
        assert engine.verify_setup(used) == 0
        assert engine.verify_setup(lengths[-1]) > 0
        assert np.array_equal(answers(engine), first)
        assert len(compiled) == number  # no signature is compiled again
    for names in compiled:
        assert len({name.startswith("verify") for name in names}) == 1


def test_no_verifier_is_compiled_without_drafts(file, cache, compiled):
    compiled.clear()
    with closing(load(file, cache, speculate=False)) as engine:
        assert engine.verify_lengths(0) == []
        with closing(engine.open_session()) as session:
            session.prefill(IDS)
    assert not any(name.startswith("verify") for names in compiled for name in names)


def test_a_large_model_is_packed_once_for_loads_with_and_without_drafts(file, cache, monkeypatch):
    monkeypatch.setattr(prepare_module, "lower_and_pack_in_child", lambda *_: pytest.fail("again"))
    for speculate in (False, True):
        load(file, cache, speculate=speculate).close()


def test_another_process_may_clear_the_disk_cache(file, cache, expected):
    with closing(load(file, cache)) as engine:
        cache.clear()
        assert np.array_equal(answers(engine), answers(expected))


def test_a_signature_that_cannot_be_compiled_now(file, cache, compiled, expected, monkeypatch):
    """As for lack of memory: the next use tries again."""
    with closing(load(file, cache)) as engine:
        with monkeypatch.context() as patch:

            def refuse(*args):
                raise RefusedByLiteRt("no memory")

            patch.setattr(engine_module, "compile_model", refuse)
            with closing(engine.open_session()) as session, pytest.raises(ModelError, match="no memory"):
                session.prefill(IDS[:T])
        assert np.array_equal(answers(engine), answers(expected))


def test_several_sessions(file, cache, expected):
    """KV caches stay valid when another model takes the place of the one that allocated them."""
    with closing(load(file, cache)) as engine:
        with closing(engine.open_session()) as one, closing(engine.open_session()) as other:
            begun = [one.decode(token, position) for position, token in enumerate(IDS[:3])]
            other.prefill(IDS[: BUCKET + 2])
            got = [*begun, one.decode(IDS[3], 3), other.decode(IDS[5], BUCKET + 2)]
        with closing(expected.open_session()) as one, closing(expected.open_session()) as other:
            wanted = [one.decode(token, position) for position, token in enumerate(IDS[:4])]
            other.prefill(IDS[: BUCKET + 2])
            wanted.append(other.decode(IDS[5], BUCKET + 2))
        assert np.array_equal(got, wanted)
