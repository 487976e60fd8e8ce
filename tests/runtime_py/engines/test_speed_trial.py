"""The speed trial, with a clock of its own: engines take the time that a test says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from o2o.errors import ModelError
from o2o.streams.disk_cache import DiskCache
from runtime_py.engines import prepared_artifacts, speed_trial
from runtime_py.engines.model_file import ModelFile
from runtime_py.engines.options import EngineOptions
from runtime_py.engines.speed_trial import BUDGET, Form, Speed, by_speed, measured_speeds, run_trial


class Clock:
    """The time, which only engines advance."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class TimedEngine:
    """An engine and its session whose runs take a time: a step by its position, a prompt by its length."""

    capacity = 1024

    def __init__(self, clock: Clock, step: float, row: float = 0.0, window: bool = False) -> None:
        self.clock, self.step, self.row, self.window = clock, step, row, window
        self.closed = 0

    def open_session(self) -> TimedEngine:
        return self

    def reusable(self, count: int) -> int:
        return 0 if self.window else count

    def decode(self, token: int, position: int) -> None:
        self.clock.now += self.step + position * self.row

    def prefill(self, tokens: list[int]) -> None:
        self.clock.now += self.step * len(tokens) / 10

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def two_cores(monkeypatch) -> None:
    monkeypatch.setattr(speed_trial, "cores", lambda: 2)


@pytest.mark.usefixtures("two_cores")
def test_engines_on_all_cores_then_the_fastest_on_one(clock):
    steps = {Form("litert", 2): 0.004, Form("onnx", 2): 0.002, Form("onnx", 1): 0.001}
    engines: list[TimedEngine] = []

    def load(form: Form) -> TimedEngine:
        engines.append(TimedEngine(clock, steps[form]))
        return engines[-1]

    speeds = run_trial(["litert", "onnx"], load, clock)
    assert {form: speed.near for form, speed in speeds.items()} == pytest.approx(steps)
    assert all(speed.prefill == pytest.approx(speed.near / 10) for speed in speeds.values())
    assert by_speed(speeds) == [Form("onnx", 1), Form("onnx", 2), Form("litert", 2)]
    assert all(engine.closed == 2 for engine in engines)  # the session and the engine
    assert clock.now <= BUDGET


@pytest.mark.usefixtures("two_cores")
def test_a_slow_model_takes_little_more_than_the_budget(clock):
    """Decode steps are measured at least; prompts are not, and so count for no engine."""
    speeds = run_trial(["litert", "onnx"], lambda form: TimedEngine(clock, 0.1, 1e-5), clock)
    assert len(speeds) == 3
    assert all(speed.prefill is None and speed.far > speed.near for speed in speeds.values())
    assert clock.now <= BUDGET + 3 * 3 * 0.11  # and a first run of each kind


@pytest.mark.usefixtures("two_cores")
def test_an_engine_that_cannot_run_the_model(clock):
    def load(form: Form) -> TimedEngine:
        if form.engine == "onnx":
            raise ModelError("no")
        return TimedEngine(clock, 0.001)

    assert [*run_trial(["litert", "onnx"], load, clock)] == [Form("litert", 2), Form("litert", 1)]
    assert run_trial(["onnx"], load, clock) == {}


def test_window_caches_are_measured_at_their_beginning(clock):
    speeds = run_trial(["onnx"], lambda form: TimedEngine(clock, 0.001, 1.0, window=True), clock)
    assert all((speed.near, speed.far) == pytest.approx((0.001, 0.001)) for speed in speeds.values())


def test_speeds_are_stored_for_the_model_and_the_machine(clock, tmp_path, monkeypatch):
    file = tmp_path / "model.circle"
    file.write_bytes(b"a model")
    options = EngineOptions(disk_cache=DiskCache(tmp_path / "cache"), log=pytest.fail)
    loads: list[Form] = []

    def load(form: Form) -> TimedEngine:
        loads.append(form)
        return TimedEngine(clock, 0.002 / form.threads)

    def measured(path: Path = file) -> speed_trial.Speeds:
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


def test_a_prompt_counts_only_where_all_were_measured():
    fast_prompt, fast_steps = Speed(2.0, 2.0, 0.1), Speed(1.0, 1.0, 5.0)
    one, two = Form("litert", 1), Form("onnx", 1)
    assert by_speed({one: fast_prompt, two: fast_steps}) == [one, two]
    assert by_speed({one: Speed(2.0, 2.0), two: fast_steps}) == [two, one]
