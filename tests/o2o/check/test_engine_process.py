"""The engine's process: what happens there stays there, and is reported in one line."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from o2o import formats
from o2o.check import engine_process
from o2o.check.engine_process import EngineFailure, EngineProcess
from tests.o2o.graphs import feeds, linear


@pytest.fixture
def engine():
    process = EngineProcess()
    yield process
    process.close()


def load(engine: EngineProcess, path) -> int:
    model = linear("tflite")
    formats.save(model, path)
    key = engine.new_key()
    engine.request("load_litert", key, str(path), True, False, True)
    return key


def test_a_model_runs(engine: EngineProcess, tmp_path) -> None:
    key = load(engine, tmp_path / "model.tflite")
    results = engine.request("run_litert", key, "main", feeds(linear()))
    assert {name: numbers.shape for name, numbers in results.items()} == {"y": (2, 3), "z": (2, 3)}
    engine.request("release", key)
    with pytest.raises(EngineFailure):
        engine.request("run_litert", key, "main", feeds(linear()))


def test_a_file_that_the_engine_refuses(engine: EngineProcess, tmp_path) -> None:
    (tmp_path / "model.tflite").write_bytes(b"TFL3" * 20)
    with pytest.raises(EngineFailure) as failure:
        engine.request("load_litert", engine.new_key(), str(tmp_path / "model.tflite"), True, False, True)
    assert "\n" not in str(failure.value)
    load(engine, tmp_path / "model.tflite")
    assert engine.starts == 1, "the process goes on"


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGABRT, "ended by SIGABRT"), (signal.SIGKILL, "lack of memory")]
)
def test_a_crash(engine: EngineProcess, tmp_path, number: signal.Signals, reason: str) -> None:
    load(engine, tmp_path / "model.tflite")
    assert engine._process is not None
    os.kill(engine._process.pid, number)
    with pytest.raises(EngineFailure, match=reason):
        engine.request("release", 0)
    assert not engine.alive
    load(engine, tmp_path / "model.tflite")
    assert engine.starts == 2


def test_a_hang(engine: EngineProcess, tmp_path, monkeypatch) -> None:
    load(engine, tmp_path / "model.tflite")
    assert engine._process is not None
    monkeypatch.setattr(engine_process, "TIMEOUT", 0.1)
    os.kill(engine._process.pid, signal.SIGSTOP)
    with pytest.raises(EngineFailure, match="did not answer"):
        engine.request("release", 0)
    assert not engine.alive


def test_an_interrupted_request_leaves_no_reply_behind(engine: EngineProcess, tmp_path) -> None:
    load(engine, tmp_path / "model.tflite")
    assert engine._process is not None
    os.kill(engine._process.pid, signal.SIGSTOP)
    this = threading.main_thread().ident
    assert this is not None
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    threading.Thread(
        target=lambda: (time.sleep(0.1), signal.pthread_kill(this, signal.SIGINT)), daemon=True
    ).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            engine.request("release", 0)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert not engine.alive
