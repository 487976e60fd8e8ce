"""An engine made of two: any sequence of calls gives the logits that numpy computes from the text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from o2o import formats
from o2o.errors import ModelError
from runtime_py.engines import phases
from runtime_py.engines.engine import Engine
from runtime_py.engines.loading import load_engine
from runtime_py.engines.options import EngineOptions
from runtime_py.engines.phased_engine import PhasedEngine
from runtime_py.engines.phases import Phase
from runtime_py.engines.registry import installed
from runtime_py.engines.step_lock import EngineClosed
from tests.o2o.window_graphs import WINDOW, T, V, logits_of, window_model
from tests.runtime_py.engines.test_window_caches import (  # noqa: F401  collected with the fixture below
    test_any_calls,
    test_every_prompt_length,
    test_texts_of_a_pool,
)
from tests.tolerances import assert_close

if "onnx" not in installed():
    pytest.skip("no onnxruntime", allow_module_level=True)

BOUNDARY = 12
CASES: dict[str, tuple[str, frozenset[Phase]]] = {
    "long texts elsewhere": ("litert onnx", frozenset({Phase.LONG_PROMPT, Phase.FAR_DECODE})),
    "prompts elsewhere": ("onnx litert", frozenset({Phase.SHORT_PROMPT, Phase.LONG_PROMPT})),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("phased") / "model.circle"
    formats.save(window_model(14, [2 * T, T, 1], (WINDOW, 0)), file)
    return file


@pytest.fixture(autouse=True, scope="module")
def boundary() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases, "BOUNDARY", BOUNDARY)
        yield


def loader(file: Path, engine: str) -> Callable[[], Engine]:
    """Drafts are rounded: ONNX Runtime has no exact ones for window caches."""
    return lambda: load_engine(file, EngineOptions(engine=engine, rounded_drafts=True)).engine


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, file: Path) -> Iterator[Any]:
    """(engine, the logits after each token of a text)."""
    engines, of_other = CASES[request.param]
    main, other = (loader(file, name) for name in engines.split())
    with closing(PhasedEngine(main(), other, of_other, pytest.fail)) as engine:
        yield engine, lambda ids: logits_of(ids, (WINDOW, 0))


def test_the_other_engine_is_loaded_at_its_first_phase(file: Path) -> None:
    loads: list[int] = []
    ids = [token % V for token in range(BOUNDARY + 2)]
    expected = logits_of(ids, (WINDOW, 0))

    def load_other() -> Engine:
        loads.append(len(loads))
        return loader(file, "litert")()

    engine = PhasedEngine(loader(file, "onnx")(), load_other, frozenset({Phase.FAR_DECODE}))
    session = engine.open_session()
    session.prefill(ids[:4])
    assert engine.verify_lengths(4)
    assert max(engine.verify_lengths(4)) + 4 <= BOUNDARY
    assert engine.verify_lengths(BOUNDARY) == []
    for position in range(4, BOUNDARY + 2):
        assert loads == ([] if position <= BOUNDARY else [0])
        assert_close(session.decode(ids[position], position), expected[position])
    engine.close()
    with pytest.raises(EngineClosed):
        session.decode(0, 4)
    session.close()
    assert loads == [0]


def test_the_first_engine_goes_on_where_the_other_cannot_be_loaded(file: Path) -> None:
    def load_other() -> Engine:
        raise ModelError("no memory")

    lines: list[str] = []
    every = frozenset(Phase)
    with closing(PhasedEngine(loader(file, "litert")(), load_other, every, lines.append)) as engine:
        session = engine.open_session()
        assert_close(session.prefill([1, 2, 3]), logits_of([1, 2, 3], (WINDOW, 0))[-1])
        assert_close(session.decode(4, 3), logits_of([1, 2, 3, 4], (WINDOW, 0))[-1])
    assert lines == ["a second engine is not used: no memory"]
