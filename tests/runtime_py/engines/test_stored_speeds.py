"""The stored speeds of a model: when they are measured, and when again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from o2o.streams.disk_cache import DiskCache
from runtime_py.engines import prepared_artifacts, stored_speeds
from runtime_py.engines.model_file import ModelFile
from runtime_py.engines.options import EngineOptions
from runtime_py.engines.speed_trial import Form, Speeds
from runtime_py.engines.stored_speeds import MAX_TRIALS, measured_speeds
from tests.runtime_py.engines.test_speed_trial import Clock, TimedEngine


class NoPrograms:
    cores = 0.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_speeds_are_stored_for_the_model_and_the_machine(clock, tmp_path, monkeypatch):
    file = tmp_path / "model.circle"
    file.write_bytes(b"a model")
    monkeypatch.setattr(stored_speeds, "OtherPrograms", lambda: NoPrograms())
    options = EngineOptions(disk_cache=DiskCache(tmp_path / "cache"), log=pytest.fail)
    loads: list[Form] = []

    def load(form: Form) -> TimedEngine:
        loads.append(form)
        return TimedEngine(clock, 0.002 / form.threads)

    def measured(path: Path = file) -> Speeds:
        loads.clear()
        return measured_speeds(ModelFile(path), ["litert", "onnx"], options, load, clock)

    first = measured()
    assert loads
    assert measured() == first
    assert loads == []
    assert options.disk_cache is not None
    (entry,) = options.disk_cache.entries()
    assert entry.label == f"speed of litert, onnx: {file}"
    os.truncate(options.disk_cache.folder / entry.key / "speeds.json", 5)
    assert measured().keys() == first.keys()  # a damaged entry is not used
    assert loads
    monkeypatch.setattr(prepared_artifacts, "processor_features", lambda: "another processor")
    measured()
    assert loads
    file.write_bytes(b"another model")
    measured()
    assert loads
    options.disk_cache.clear()
    measured()
    assert loads


def test_an_interrupted_trial_leaves_nothing(tmp_path):
    def load(form: Form) -> TimedEngine:
        raise KeyboardInterrupt

    file = tmp_path / "model.circle"
    file.write_bytes(b"a model")
    cache = DiskCache(tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        measured_speeds(ModelFile(file), ["litert"], EngineOptions(disk_cache=cache), load)
    assert list(cache.folder.iterdir()) == []


def test_without_a_cache_nothing_is_measured(tmp_path):
    file = tmp_path / "model.circle"
    file.write_bytes(b"a model")
    options = EngineOptions(disk_cache=None)
    assert measured_speeds(ModelFile(file), ["litert"], options, pytest.fail) == {}


def test_a_disturbed_trial_is_made_again_on_an_idle_machine(clock, tmp_path, monkeypatch):
    """Of each kind of run, the fastest of all trials counts."""
    file = tmp_path / "model.circle"
    file.write_bytes(b"a model")
    cache = DiskCache(tmp_path / "cache")
    options = EngineOptions(disk_cache=cache)
    trials: list[float] = []
    load_of_machine = [2.0, 0.0, 0.0]
    seconds = [0.003, 0.001, 0.002, 0.004]
    monkeypatch.setattr(os, "getloadavg", lambda: load_of_machine)
    monkeypatch.setattr(stored_speeds, "OtherPrograms", lambda: type("Busy", (), {"cores": 0.5}))

    def trial(engines: list[str], load: object, of: Clock) -> Speeds:
        trials.append(seconds[len(trials)])
        return {Form("onnx", 1): speed_trial_of(trials[-1])}

    def speed_trial_of(step: float):
        return stored_speeds.Speed(step, 0.005 - step)

    monkeypatch.setattr(stored_speeds, "run_trial", trial)

    def measured() -> Speeds:
        return measured_speeds(ModelFile(file), ["onnx"], options, pytest.fail, clock)

    assert measured() == measured() == {Form("onnx", 1): stored_speeds.Speed(0.003, 0.002)}
    assert len(trials) == 1, "the machine is busy"
    load_of_machine[0] = 0.0
    assert measured() == {Form("onnx", 1): stored_speeds.Speed(0.001, 0.002)}
    for _ in range(3):
        assert measured() == {Form("onnx", 1): stored_speeds.Speed(0.001, 0.002)}
    assert len(trials) == MAX_TRIALS
    assert len(cache.entries()) == 1
