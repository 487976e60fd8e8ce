"""Window caches on each engine: any sequence of calls gives the logits that numpy computes from the text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o2o import formats
from o2o.errors import ModelError
from runtime_py.engines.engine import Engine
from runtime_py.engines.loading import load_engine
from runtime_py.engines.options import EngineOptions
from runtime_py.generation.session import Session
from runtime_py.generation.session_pool import SessionPool
from runtime_py.model.contract import Contract
from tests.o2o.window_graphs import WINDOW, S, T, V, logits_of, window_model
from tests.tolerances import assert_close

ROWS = 14
ALTERNATING, ALL = (WINDOW, 0), (WINDOW, 3)
CASES: dict[str, tuple[str, tuple[int, ...], EngineOptions]] = {
    "litert": ("litert", ALTERNATING, EngineOptions(engine="litert", buckets=[8, 16, 32])),
    "litert, no buckets": ("litert", ALTERNATING, EngineOptions(engine="litert", buckets=[])),
    "litert, windows alone": ("litert", ALL, EngineOptions(engine="litert", buckets=[8, 16])),
    "onnx": ("onnx", ALTERNATING, EngineOptions(engine="onnx")),
    "onnx, windows alone": ("onnx", ALL, EngineOptions(engine="onnx")),
    "onert": ("onert", ALTERNATING, EngineOptions(engine="onert")),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """(engine, the logits after each token of a text)."""
    name, windows, options = CASES[request.param]
    file = tmp_path_factory.mktemp("window") / "model.circle"
    lengths = [1] if name == "onert" else [2 * T, T, 1]
    formats.save(window_model(ROWS, lengths, windows), file)
    with closing(load_engine(file, options).engine) as engine:
        assert engine.capacity == S
        yield engine, lambda ids: logits_of(ids, windows)


def test_every_prompt_length(case: tuple[Engine, Callable]) -> None:
    """In one session, so that rows of other texts are in its caches; then decode beyond three windows."""
    engine, expected = case
    ids = np.random.default_rng(0).integers(0, V, S).tolist()
    wanted = expected(ids)
    with closing(engine.open_session()) as session:
        for length in range(1, S + 1):
            assert_close(session.prefill(ids[:length]), wanted[length - 1], err_msg=f"{length}")
            for position in range(length, min(length + 3 * WINDOW, S) if length % 7 == 1 else length):
                assert_close(session.decode(ids[position], position), wanted[position])


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_calls(case: tuple[Engine, Callable], data: st.DataObject) -> None:
    """Two sessions: prompts, steps, texts that go back, and rows of the other session, copied or stored."""
    engine, expected = case
    sessions = [engine.open_session() for _ in range(2)]
    texts: list[list[int]] = [[], []]
    for _ in range(data.draw(st.integers(1, 8))):
        which = data.draw(st.integers(0, 1))
        session, text = sessions[which], texts[which]
        match data.draw(st.sampled_from(["read", "steps", "verify", "copy", "rows", "logits"])):
            case "read":
                shared = data.draw(st.integers(0, len(text)))
                new = data.draw(st.lists(st.integers(0, V - 1), max_size=S - shared))
                prompt = text[:shared] + new
                if not prompt:
                    continue
                logits = session.prefill(prompt, min(shared, len(prompt) - 1))
                assert_close(logits, expected(prompt)[-1])
                texts[which] = prompt
            case "steps":
                for token in data.draw(st.lists(st.integers(0, V - 1), max_size=S - len(text))):
                    text.append(token)
                    assert_close(session.decode(token, len(text) - 1), expected(text)[-1])
            case "verify":
                length = len(text)
                if not length or length == S or not (lengths := engine.verify_lengths(length)):
                    continue
                count = data.draw(st.integers(2, lengths[-1]))
                draft = data.draw(st.lists(st.integers(0, V - 1), min_size=count, max_size=count))
                assert_close(session.verify(draft, length), expected(text + draft)[length:])
                text += draft[: data.draw(st.integers(1, count))]
            case "copy":
                other = texts[1 - which]
                same = [a == b for a, b in zip(text, other, strict=False)]
                start = data.draw(st.integers(0, [*same, False].index(False)))
                stop = data.draw(st.integers(start, len(other)))
                if sessions[1 - which].reusable(stop) == stop > start:
                    with engine.steps.turn():
                        session.copy_rows(sessions[1 - which], start, stop)
                    texts[which] = other[:stop]
            case "rows":
                text, count = texts[1 - which], data.draw(st.integers(0, len(texts[1 - which])))
                same = [a == b for a, b in zip(texts[which], text, strict=False)]
                start = data.draw(st.integers(0, min([*same, False].index(False), count)))
                with engine.steps.turn():
                    if not text or sessions[1 - which].reusable(len(text)) != len(text):
                        continue
                    rows = sessions[1 - which].read_rows(len(text))
                    assert rows is not None
                    if rows.lowest > max(0, count - WINDOW + 1):
                        continue
                    session.write_rows(rows, start, count)
                assert session.reusable(count) == count
                texts[which] = text[:count]
            case "logits":
                prompt = data.draw(st.lists(st.integers(0, V - 1), min_size=1, max_size=S))
                assert_close(np.concatenate([*session.logits(prompt)]), expected(prompt))
                texts[which] = prompt
    for session in sessions:
        session.close()


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_texts_of_a_pool(case: tuple[Engine, Callable], data: st.DataObject) -> None:
    """Three texts share two sets of caches: prefixes are copied, and lost rows are read again."""
    engine, expected = case
    pool = SessionPool(engine, max_sessions=2)
    sessions = [Session(pool) for _ in range(3)]
    texts: list[list[int]] = [[], [], []]
    pieces = [np.random.default_rng(seed).integers(0, V, 17).tolist() for seed in range(2)]
    for _ in range(data.draw(st.integers(1, 8))):
        which = data.draw(st.integers(0, 2))
        if texts[which] and data.draw(st.booleans()):
            for token in data.draw(st.lists(st.integers(0, V - 1), max_size=min(9, S - len(texts[which])))):
                texts[which].append(token)
                assert_close(sessions[which].append(token), expected(texts[which])[-1])
        else:
            chosen = data.draw(st.lists(st.sampled_from(pieces), max_size=2))
            end = data.draw(st.lists(st.integers(0, V - 1), min_size=1, max_size=4))
            texts[which] = [token for piece in chosen for token in piece] + end
            assert_close(sessions[which].read(texts[which]), expected(texts[which])[-1])
    for caches in pool.caches:
        caches.free()


@pytest.mark.parametrize("length", [4, 30])
def test_a_prefill_without_caches(tmp_path: Path, length: int) -> None:
    """It returns all its rows, also more than the window caches hold; then decode continues."""
    file = tmp_path / "model.circle"
    formats.save(window_model(ROWS, [1], without_caches=length), file)
    ids = np.random.default_rng(2).integers(0, V, S).tolist()
    wanted = logits_of(ids)
    options = EngineOptions(engine="litert", buckets=[8, 16, 32])
    with closing(load_engine(file, options).engine) as engine, closing(engine.open_session()) as session:
        for prompt in range(1, S + 1, 4):
            assert_close(session.prefill(ids[:prompt]), wanted[prompt - 1])
            for position in range(prompt, min(prompt + 9, S)):
                assert_close(session.decode(ids[position], position), wanted[position])


def test_a_step_at_a_position_that_is_not_held(case: tuple[Engine, Callable]) -> None:
    engine, _ = case
    with closing(engine.open_session()) as session:
        session.prefill([1] * 40)
        assert (session.reusable(40), session.reusable(6)) == (40, 0)
        with pytest.raises(ValueError, match="do not hold the rows before position 6 any more"):
            session.decode(1, 6)


def test_contracts_that_do_not_fit() -> None:
    contract = _contract(ROWS)
    without = {**contract, "signatures": {name: dict(of) for name, of in contract["signatures"].items()}}
    for of in without["signatures"].values():
        of["inputs"] = [entry for entry in of["inputs"] if entry.get("role") != "window_row"]
    with pytest.raises(ModelError, match="needs one input window_row"):
        Contract.parse(without)
    for entry in (e for of in contract["signatures"].values() for e in of["inputs"] + of["outputs"]):
        if "capacity" in entry:
            entry["shape"][2] = WINDOW + 1
    with pytest.raises(
        ModelError, match="prefill_4 reads 4 tokens, and its window caches of 6 rows have room for 2"
    ):
        Contract.parse(contract)


def _contract(rows: int) -> dict[str, Any]:
    from o2o.contract import contract_of

    return contract_of(window_model(rows))


def test_window_caches_take_the_memory_of_their_rows(tmp_path: Path) -> None:
    file = tmp_path / "model.circle"
    formats.save(window_model(ROWS), file)
    with closing(load_engine(file, EngineOptions(engine="onnx")).engine) as engine:
        caches = engine.contract.decode.caches.values()
        assert sum(np.prod(cache.shape) for cache in caches) == 2 * 8 * (ROWS + S)
