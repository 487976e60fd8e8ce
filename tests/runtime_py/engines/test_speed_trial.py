"""The speed trial, with a clock of its own: engines take the time that a test says."""

from __future__ import annotations

import pytest

from o2o.errors import ModelError
from runtime_py.engines import speed_trial
from runtime_py.engines.speed_trial import BUDGET, Form, Speed, by_speed, of_scoring, run_trial


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
        self.prompts: set[int] = set()

    def open_session(self) -> TimedEngine:
        return self

    def reusable(self, count: int) -> int:
        return 0 if self.window else count

    def decode(self, token: int, position: int) -> None:
        self.clock.now += self.step + position * self.row

    def prefill(self, tokens: list[int]) -> None:
        self.clock.now += self.step * len(tokens) / 10
        self.prompts.add(len(tokens))

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def two_cores(monkeypatch) -> None:
    monkeypatch.setattr(speed_trial, "cores", lambda: 2)


@pytest.mark.usefixtures("two_cores")
def test_engines_on_all_cores_then_on_fewer(clock):
    """An engine that is slower on fewer threads is given up; a much slower one is not tried there."""
    steps = {
        Form("litert", 2): 0.00025,
        Form("onnx", 2): 0.0002,
        Form("slow", 2): 0.001,
        Form("litert", 1): 0.0004,
        Form("onnx", 1): 0.0001,
    }
    engines: list[TimedEngine] = []

    def load(form: Form) -> TimedEngine:
        clock.now += 0.5 / (len(engines) + 1)
        engines.append(TimedEngine(clock, steps[form]))
        return engines[-1]

    speeds = run_trial(["litert", "onnx", "slow"], load, clock)
    del steps[Form("litert", 1)]
    assert {form: speed.near for form, speed in speeds.items()} == pytest.approx(steps)
    assert by_speed(speeds)[:2] == [Form("onnx", 1), Form("onnx", 2)]
    for speed in speeds.values():
        assert (speed.prefill, speed.long_prefill) == pytest.approx((speed.near / 10, speed.near / 10))
    assert speeds[Form("litert", 2)].load == pytest.approx(0.5 / 5)  # the second load, as the first one packs
    assert len(engines) == 5
    assert all(engine.closed == 2 for engine in engines)  # the session and the engine
    assert clock.now <= BUDGET + 0.5 * (1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5)


@pytest.mark.usefixtures("two_cores")
def test_a_slow_model_takes_little_more_than_the_budget(clock):
    """Long prompts are not read, and short ones are as short as the time is."""
    engines: list[TimedEngine] = []

    def load(form: Form) -> TimedEngine:
        engines.append(TimedEngine(clock, 0.02, 1e-5))
        return engines[-1]

    speeds = run_trial(["litert", "onnx"], load, clock)
    assert all(speed.long_prefill is None and speed.far > speed.near for speed in speeds.values())
    assert engines[0].prompts == {1, 64}
    assert clock.now <= BUDGET + 0.2


@pytest.mark.usefixtures("two_cores")
def test_prompts_of_a_very_slow_model_are_not_measured(clock):
    speeds = run_trial(["litert", "onnx"], lambda form: TimedEngine(clock, 0.1, 1e-5), clock)
    assert all(speed.prefill is None for speed in speeds.values())
    assert clock.now <= BUDGET + 0.5


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


def test_a_prompt_counts_only_where_all_were_measured():
    fast_prompt, fast_steps = Speed(2.0, 2.0, 0.1), Speed(1.0, 1.0, 5.0)
    one, two = Form("litert", 1), Form("onnx", 1)
    assert by_speed({one: fast_prompt, two: fast_steps}) == [one, two]
    assert by_speed({one: Speed(2.0, 2.0), two: fast_steps}) == [two, one]


def test_of_two_measurements_the_fastest_counts():
    one, two = Speed(1.0, 4.0, None, 2.0, 0.5), Speed(2.0, 3.0, 0.1, None, 0.7)
    assert one.fastest(two) == Speed(1.0, 3.0, 0.1, 2.0, 0.5)


def test_prompts_alone_count_for_scoring():
    one, two = Form("litert", 2), Form("onnx", 2)
    speeds = {one: Speed(1.0, 1.0, 0.2, 0.2), two: Speed(2.0, 2.0, 0.1, 0.1)}
    assert by_speed(speeds) == [one, two]
    assert by_speed(of_scoring(speeds)) == [two, one]
    unmeasured = {**speeds, two: Speed(2.0, 2.0)}
    assert of_scoring(unmeasured) == unmeasured
