"""Token ids and positions are refused alike: by the one check, on each engine, and at each door."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest

from o2o.errors import ModelError, O2oError, UsageError
from runtime_py.engines.engine import Engine, EngineSession
from runtime_py.engines.litert.engine import LiteRtEngine
from runtime_py.engines.onnx.engine import OnnxEngine
from runtime_py.engines.registry import installed
from runtime_py.engines.token_ids import check_prompt, check_token, stop_ids, token_ids
from runtime_py.model.contract import Contract
from tests.runtime_py.toy import VOCAB, Toy
from tests.runtime_py.toy_onnx import toy_onnx
from tests.tolerances import assert_close

S = 8
WRONG_IDS = [
    [-1],
    [3, -(2**40)],
    [2**80],
    [1.5],
    [1.0],
    [True],
    [np.bool_(True)],
    ["1"],
    [None],
    [[1, 2]],
    [],
    None,
    5,
    "12",
    b"\x01\x02",
    {1, 2},
    {1: 2},
    np.array([1.0]),
    np.array([[1, 2]]),
    np.array(1),
    np.array([True]),
    iter([1, 2]),
]
WRONG_STEPS = [(-1, 0), (2**31, 0), (1.5, 0), (True, 0), ("a", 0), (None, 0), (1, -1), (1, 0.0), (1, True)]
"""(token, position)."""


class Limits:
    capacity, vocab_size = S, VOCAB


def test_integers_of_any_kind_are_ids():
    for ids in (
        [1, 2],
        (1, 2),
        range(1, 3),
        np.array([1, 2], np.int32),
        np.array([1, 2], np.uint8),
        [np.int64(1), 2],
    ):
        numbers = token_ids(ids)
        assert numbers == [1, 2]
        assert {type(number) for number in numbers} == {int}
    assert check_token(np.int32(3), np.int64(0), Limits()) == 3
    assert stop_ids({1, np.int64(2)}, VOCAB, "stop_tokens") == {1, 2}


@pytest.mark.parametrize("ids", WRONG_IDS, ids=range(len(WRONG_IDS)))
def test_anything_else_is_refused_in_one_line(ids):
    with pytest.raises(O2oError, match="the prompt") as caught:
        check_prompt(ids, Limits())
    assert "\n" not in str(caught.value)


def test_messages_say_what_and_where():
    with pytest.raises(UsageError, match=r"has 1.5 at index 1, which is not an integer"):
        token_ids([0, 1.5])
    with pytest.raises(UsageError, match=r"has -2 at index 1: no token id is below 0"):
        token_ids([0, -2])
    with pytest.raises(ModelError, match=r"the token id 11, the model has ids below 11"):
        check_prompt([11], Limits())
    with pytest.raises(UsageError, match=r"2 of 2 tokens are cached"):
        check_prompt([1, 2], Limits(), num_cached=2)
    for number in (1.0, None, "1", True):
        with pytest.raises(UsageError, match=r"the number of cached tokens is .*, which is not an integer"):
            check_prompt([1, 2], Limits(), num_cached=number)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"stop_tokens has 11, the model has token ids below 11"):
        stop_ids([1, 11], VOCAB, "stop_tokens")


@pytest.fixture(scope="module")
def toy() -> Toy:
    return Toy(prefill_length=0, cached_lengths=[4], capacity=S)


@contextlib.contextmanager
def opened(engine: Engine) -> Iterator[EngineSession]:
    with contextlib.closing(engine), contextlib.closing(engine.open_session()) as session:
        yield session


@pytest.fixture(params=["litert", "onnx"])
def session(request, toy) -> Iterator[EngineSession]:
    if request.param not in installed():
        pytest.skip("not installed")
    if request.param == "litert":
        engine: Engine = LiteRtEngine(toy.file, Contract.parse(toy.contract))
    else:
        engine = OnnxEngine(toy_onnx(toy).SerializeToString())
    with opened(engine) as session:
        yield session


def check_session(session: EngineSession, expected: np.ndarray, capfd: pytest.CaptureFixture[str]) -> None:
    """Every wrong id is refused, nothing is printed, and the session goes on to compute `expected`."""
    vocab_size, capacity = session.vocab_size, session.capacity
    for ids in [*WRONG_IDS, [vocab_size], [0] * (capacity + 1)]:
        with pytest.raises(O2oError):
            session.prefill(ids)
    for token, position in [*WRONG_STEPS, (vocab_size, 0), (1, capacity)]:
        with pytest.raises(O2oError):
            session.decode(token, position)
    with pytest.raises(UsageError):
        session.prefill([1, 2], 2)
    with pytest.raises(UsageError):
        session.prefill([1, 2], -1)
    assert capfd.readouterr() == ("", "")
    session.prefill([1, 2])
    assert_close(session.decode(3, 2), expected)


def test_engines_refuse_alike(session, toy, capfd):
    check_session(session, toy.logits([1, 2, 3]), capfd)


@pytest.mark.skipif("onert" not in installed(), reason="onert is not installed")
def test_onert_refuses_alike(pipeline_package, shape, capfd):
    if shape != "demo":
        pytest.skip("one shape suffices")
    with opened(pipeline_package.engine(engine="litert", threads=1)) as session:
        session.prefill([1, 2])
        expected = session.decode(3, 2)
    engine = pipeline_package.engine(engine="onert", threads=1)
    with opened(engine) as session:
        capfd.readouterr()
        check_session(session, expected, capfd)
