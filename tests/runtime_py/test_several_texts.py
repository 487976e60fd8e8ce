"""Several texts of one package, in turns and in threads: each is the text alone, on every engine."""

from __future__ import annotations

import contextlib
import gc
import random
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from o2o import formats
from o2o.errors import UsageError
from runtime_py.engines.engine import Engine, EngineSession
from runtime_py.engines.options import EngineOptions
from runtime_py.engines.registry import installed
from runtime_py.engines.step_lock import CLOSED, FORKED, SESSION_CLOSED, EngineClosed
from runtime_py.generation.generate import Token
from runtime_py.generation.session import BUSY, Session
from runtime_py.generation.session_pool import TooManySessions
from runtime_py.package import Package
from tests.o2o import language_model_graphs
from tests.o2o.language_model_graphs import V, greedy_logits, language_model
from tests.runtime_py.forking import in_child
from tests.runtime_py.generation.test_generate import Digits
from tests.runtime_py.toy import Toy
from tests.runtime_py.toy_onnx import write_onnx

S, BUCKETS = 32, (4, 8, 16)
EDGES = sorted({edge + step for edge in (*BUCKETS, S) for step in (-1, 0, 1)} | {1, 2})


@dataclass(frozen=True)
class Known:
    """A model with logits that are computed in numpy."""

    file: Path
    logits: Callable[[Sequence[int]], np.ndarray]

    @cache  # noqa: B019
    def alone(self, prompt: tuple[int, ...]) -> list[int]:
        """The greedy tokens to the end of the context."""
        ids = list(prompt)
        while len(ids) <= S:
            ids.append(int(np.argmax(self.logits(ids))))
        return ids[len(prompt) :]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Known]:
    """By engine. On LiteRT with prefills of 4 and 8 tokens."""
    folder = tmp_path_factory.mktemp("texts")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(language_model_graphs, "S", S)
        formats.save(language_model((8, 4, 1), ("prefill_8", "prefill_4", "decode")), folder / "model.circle")
    toy = Toy(capacity=S)
    circle = Known(folder / "model.circle", greedy_logits)
    return {
        "litert": circle,
        "onert": circle,
        "onnx": Known(write_onnx(toy, folder / "model.onnx"), lambda ids: toy.logits(list(ids))),
    }


@pytest.fixture(params=installed())
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def known(models: dict[str, Known], engine: str) -> Known:
    return models[engine]


@pytest.fixture
def package(known: Known, engine: str) -> Iterator[Package]:
    with opened(known, engine) as package:
        yield package


def opened(known: Known, engine: str, **options: Any) -> Package:
    buckets = BUCKETS if engine == "litert" else None
    max_sessions = options.pop("max_sessions", 4)
    chosen = EngineOptions(**{"engine": engine, "buckets": buckets, "disk_cache": None} | options)
    package = Package.load(known.file, options=chosen, max_sessions=max_sessions)
    package.tokenizer = Digits()  # type: ignore[assignment, misc]
    return package


def prompts(rng: random.Random) -> Iterator[tuple[int, ...]]:
    """Prompts whose length is at an edge of a bucket, and that often begin alike."""
    while True:
        base = [rng.randrange(V) for _ in range(S)] if rng.random() < 0.3 else [1, 2, 3, 4] * (S // 4)
        length = rng.choice([edge for edge in EDGES if edge <= S])
        tail = [rng.randrange(V) for _ in range(rng.randrange(3))]
        yield tuple([*base[: max(1, length - len(tail))], *tail][:S])


def ids(tokens: Iterator[Token]) -> list[int]:
    return [token.id for token in tokens]


def in_turns(package: Package, known: Known, rng: random.Random, texts: int) -> None:
    """Advance up to 4 streams in random order. Some are closed or dropped in the middle."""
    running: list[tuple[tuple[int, ...], list[int], Generator[Token, None, None]]] = []
    new = prompts(rng)
    while texts or running:
        if texts and len(running) < 4 and rng.random() < 0.5:
            prompt = next(new)
            running.append((prompt, [], package.stream(prompt)))
            texts -= 1
        elif running:
            index = rng.randrange(len(running))
            prompt, seen, stream = running[index]
            for _ in range(rng.randrange(1, 6)):
                if (token := next(stream, None)) is None:
                    assert seen == known.alone(prompt)
                    break
                seen.append(token.id)
                assert seen == known.alone(prompt)[: len(seen)]
            if token is None or rng.random() < 0.1:
                del running[index]
                if rng.random() < 0.5:
                    stream.close()
                del stream


def test_texts_in_turns(package: Package, known: Known) -> None:
    in_turns(package, known, random.Random(1), 60)


def test_texts_in_threads(package: Package, known: Known) -> None:
    """Each thread reads whole texts and parts of texts."""

    def read(seed: int) -> None:
        rng = random.Random(seed)
        for _, prompt in zip(range(30), prompts(rng), strict=False):
            expected = known.alone(prompt)
            count = rng.choice([len(expected), rng.randrange(1, len(expected) + 1)])
            with contextlib.closing(package.stream(prompt)) as stream:
                assert ids(token for token, _ in zip(stream, range(count), strict=False)) == expected[:count]

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(read, range(4)))


def test_sessions_in_threads_give_way_and_read_again(known: Known, engine: str) -> None:
    """Two KV caches for six texts, each continued in many turns."""
    with opened(known, engine, max_sessions=2) as package:

        def continue_texts(seed: int) -> None:
            rng = random.Random(seed)
            sessions = [package.session() for _ in range(3)]
            texts = [list(next(prompts(rng)))[: S - 9] for _ in sessions]
            for _ in range(8):
                for session, text in zip(sessions, texts, strict=True):
                    new = ids(package.stream(text, session, max_new_tokens=1))
                    assert new == known.alone(tuple(text))[:1]
                    text += new

        with ThreadPoolExecutor(2) as threads:
            list(threads.map(continue_texts, range(2)))


@pytest.mark.parametrize("buckets", [(), BUCKETS])
def test_rows_are_copied_from_whichever_bucket_has_them(
    models: dict[str, Known], buckets: tuple[int, ...]
) -> None:
    """The rows of the source are in the largest caches, in a bucket, or in both."""
    with opened(models["litert"], "litert", buckets=buckets) as package:
        for length in range(10, S - 1):
            for new in (0, 1, 5):
                source, target = package.session(), package.session()
                text = [new, length % V, *(index % 9 for index in range(2, length))]  # a new beginning
                source.read(text)
                for _ in range(min(new, S - len(text) - 1)):
                    text.append(5)
                    source.append(5)
                logits = target.read([*text, 3])
                np.testing.assert_allclose(logits, greedy_logits([*text, 3]), rtol=1e-4, atol=1e-4)
                assert [run.start for run in target.runs] == [len(text)]
                np.testing.assert_allclose(
                    source.read([*text, 4]), greedy_logits([*text, 4]), rtol=1e-4, atol=1e-4
                )
                source.close()
                target.close()


def test_texts_that_begin_alike_at_the_same_time_compute_it_once(package: Package, known: Known) -> None:
    computed = []
    start = threading.Barrier(4)

    def read(token: int) -> None:
        with package.session() as session:
            start.wait(10)
            session.read([*range(1, 11), *range(1, 11), token])
            computed.append(sum(run.stop - run.start for run in session.runs))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(read, range(4)))
    # The last run of each text is its own. Before it, at most one chunk is computed twice.
    assert sum(computed) <= 2 * 20 + 4 * 8


def consume(tokens: Iterator[Token], error: type[BaseException]) -> None:
    for _ in tokens:
        raise error


def test_the_consumer_fails_or_stops(package: Package, known: Known) -> None:
    prompt = (1, 2, 3)
    for error in (ValueError, KeyboardInterrupt):
        stream = package.stream(prompt)
        next(stream)
        with pytest.raises(error):
            stream.throw(error)
        with pytest.raises(error):
            consume(package.stream(prompt), error)
    for _ in package.stream(prompt):
        break
    streams = [package.stream(prompt) for _ in range(4)]
    for stream in streams:
        next(stream)
    del stream, streams[0]  # dropped
    gc.collect()
    for stream in streams:
        assert ids(stream) == known.alone(prompt)[1:]
    assert ids(package.stream(prompt)) == known.alone(prompt)


def test_one_text_too_many(package: Package, known: Known) -> None:
    streams = [package.stream((1, 2, token)) for token in range(4)]
    for stream in streams:
        next(stream)
    with pytest.raises(TooManySessions) as refused:
        next(package.stream((1, 2, 9)))
    assert str(refused.value).startswith("4 texts are being generated, the limit of max_sessions")
    for token, stream in enumerate(streams):
        assert ids(stream) == known.alone((1, 2, token))[1:]
    assert ids(package.stream((1, 2, 9))) == known.alone((1, 2, 9))


def test_a_session_of_another_package_is_refused(package: Package, known: Known, engine: str) -> None:
    with opened(known, engine) as other, other.session() as session:
        other.generate((1, 2), session, max_new_tokens=1)
        with pytest.raises(UsageError, match="the session belongs to another package"):
            next(package.stream((1, 2), session))
        assert ids(other.stream((1, 2), session)) == known.alone((1, 2))
    with pytest.raises(UsageError, match="session is of type int"):
        next(package.stream((1, 2), 5))  # type: ignore[arg-type]


def test_a_second_stream_in_a_session(package: Package, known: Known) -> None:
    with package.session() as session:
        first = package.stream((1, 2), session)
        seen = [next(first).id]
        with pytest.raises(UsageError, match=BUSY):
            next(package.stream((3, 4), session))
        assert seen + ids(first) == known.alone((1, 2))
        assert ids(package.stream((3, 4), session)) == known.alone((3, 4))
        broken = package.stream((1, 2), session)
        next(broken)
        session.close()
        with pytest.raises(EngineClosed, match=SESSION_CLOSED):
            next(broken)
    with pytest.raises(EngineClosed, match=SESSION_CLOSED):
        next(package.stream((1, 2), session))


def test_closing_the_package_while_texts_are_generated(package: Package, known: Known) -> None:
    started = threading.Barrier(4)
    errors = []

    def read(session: Session) -> None:
        try:
            started.wait(10)
            while True:
                list(package.stream((1, 2, 3), session))
        except EngineClosed as error:
            errors.append(str(error))

    threads = [threading.Thread(target=read, args=[package.session()]) for _ in range(3)]
    session, waiting = package.session(), package.stream((1, 2))
    next(waiting)
    for thread in threads:
        thread.start()
    started.wait(10)
    package.close()
    package.close()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert errors == [CLOSED] * 3
    for use in (lambda: next(waiting), lambda: next(package.stream((1, 2), session))):
        with pytest.raises(EngineClosed, match=CLOSED):
            use()
    assert ids(package.stream((1, 2))) == known.alone((1, 2))


def test_threads_that_load_the_model_at_once_load_it_once(
    package: Package, known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    load = package.engine
    monkeypatch.setattr(package, "engine", lambda: loads.append(1) or load())
    with ThreadPoolExecutor(4) as threads:
        for tokens in threads.map(lambda _: ids(package.stream((1, 2))), range(4)):
            assert tokens == known.alone((1, 2))
    assert len(loads) == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_child_loads_its_own_engine(known: Known, engine: str, threads: int) -> None:
    with opened(known, engine, threads=threads) as package:
        session, stream = package.session(), package.stream((1, 2))
        next(stream)
        next(package.stream((4,), session))
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                list(package.stream((5, 6)))

        other = threading.Thread(target=work)
        other.start()

        def child() -> None:
            for use in (lambda: next(stream), lambda: next(package.stream((3,), session))):
                with pytest.raises(EngineClosed, match=FORKED):
                    use()
            session.close()
            stream.close()
            assert ids(package.stream((1, 2))) == known.alone((1, 2))
            package.close()

        in_child(child)
        stop.set()
        other.join()
        assert ids(stream) == known.alone((1, 2))[1:]


def test_engine_sessions_in_threads(package: Package, known: Known) -> None:
    """Without the package's sessions: the engine alone."""
    with contextlib.closing(package.engine()) as engine:

        def read(seed: int) -> None:
            session = engine.open_session()
            rng = random.Random(seed)
            for _, prompt in zip(range(10), prompts(rng), strict=False):
                logits = session.prefill(prompt)
                for position, token in enumerate(known.alone(prompt)[:-1], len(prompt)):
                    assert int(logits.argmax()) == token
                    logits = session.decode(token, position)
                assert int(logits.argmax()) == known.alone(prompt)[-1]
            session.close()

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(read, range(4)))


def test_after_the_engine_was_closed(package: Package, known: Known) -> None:
    engine = package.engine()
    session, unused = engine.open_session(), engine.open_session()
    session.prefill([1, 2])
    engine.close()
    engine.close()
    for use in (lambda: session.prefill([1]), lambda: session.decode(1, 2), lambda: unused.prefill([1])):
        with pytest.raises(EngineClosed, match=CLOSED):
            use()
    session.close()
    session.close()
    with pytest.raises(EngineClosed, match=SESSION_CLOSED):
        session.decode(1, 2)


def test_two_packages_in_two_threads(models: dict[str, Known], capfd: pytest.CaptureFixture[str]) -> None:
    """On different engines, loaded and closed again and again."""

    def read(engine: str) -> None:
        for _ in range(3):
            with opened(models[engine], engine) as package:
                assert ids(package.stream((1, 2, 3))) == models[engine].alone((1, 2, 3))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(read, installed() * 2))
    assert capfd.readouterr() == ("", "")


def test_scoring_is_bounded_too(known: Known, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[EngineSession] = []
    most = 0
    text = (1, 2, 3, 4, 5, 6)
    with opened(known, engine, max_sessions=2) as package:
        expected = package.score(text)
        package.close()
        load = package.engine

        def counting(**changes: Any) -> Engine:
            started = load(**changes)
            open_session = started.open_session

            def opened_session() -> EngineSession:
                nonlocal most
                session = open_session()
                alive.append(session)
                most = max(most, len(alive))
                close = session.close
                monkeypatch.setattr(session, "close", lambda: (alive.remove(session), close()))
                return session

            monkeypatch.setattr(started, "open_session", opened_session)
            return started

        monkeypatch.setattr(package, "engine", counting)
        with ThreadPoolExecutor(6) as threads:
            assert list(threads.map(package.score, [text] * 12)) == [expected] * 12
    assert 1 <= most <= 2
