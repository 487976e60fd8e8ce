"""All installed engines give the same results for the same model, and transformers does."""

from __future__ import annotations

import numpy as np
import pytest

from runtime_py.engines.registry import installed
from runtime_py.engines.selection import EngineChoice
from runtime_py.generation.session import Session
from runtime_py.generation.session_pool import SessionPool
from tests.runtime_py.engines.conftest import S
from tests.tolerances import assert_close


@pytest.mark.parametrize("engine", installed())
def test_greedy_tokens_are_those_of_transformers(pipeline_package, reference, engine):
    text, expected = reference
    started = pipeline_package.engine(threads=1, engine=engine)
    session = started.open_session()
    assert (started.capacity, pipeline_package.loaded.choice) == (
        S,
        EngineChoice(engine, "requested by --engine"),
    )
    for length, tokens in expected.items():
        logits = session.prefill(text[:length])
        greedy = [int(logits.argmax())]
        for position in range(length, S):
            greedy.append(int(session.decode(greedy[-1], position).argmax()))
        assert greedy == tokens
    started.close()


@pytest.mark.parametrize("engine", [name for name in installed() if name != "litert"])
def test_a_session_gives_the_logits_of_litert(pipeline_package, engine):
    engines = [pipeline_package.engine(threads=1, engine=name) for name in ("litert", engine)]
    sessions = [Session(SessionPool(loaded)) for loaded in engines]
    rng = np.random.default_rng(2)
    text = rng.integers(3, sessions[0].vocab_size, S).tolist()
    for length in rng.integers(1, S, 12).tolist():  # shorter prompts, too: only a prefix is reused
        text[length // 2 :] = rng.integers(3, sessions[0].vocab_size, S - length // 2).tolist()
        ours, theirs = (session.read(text[:length]) for session in sessions)
        assert_close(theirs, ours)
        ours, theirs = (session.append(text[length]) for session in sessions)
        assert_close(theirs, ours)
    for session, loaded in zip(sessions, engines, strict=True):
        session.close()
        loaded.close()


@pytest.mark.parametrize("engine", installed())
def test_the_logits_of_each_token_are_those_of_decode_steps(pipeline_package, engine):
    text = np.random.default_rng(3).integers(3, 100, S).tolist()
    scorer = pipeline_package.engine(threads=1, engine=engine, all_logits=True)
    assert scorer.gives_all_logits == (engine != "onert")
    plain = pipeline_package.engine(threads=1, engine=engine)
    session, steps = scorer.open_session(), plain.open_session()
    expected = np.array([steps.decode(token, position) for position, token in enumerate(text)])
    for length in (1, 2, 7, S - 1, S):
        parts = [*session.logits(text[:length])]
        assert sum(map(len, parts)) == length
        assert_close(np.concatenate(parts), expected[:length])
    scorer.close()
    plain.close()
