"""The speed trial: engines and numbers of threads are tried on a model, and their speeds are measured.

Which engine is the fastest depends on the processor, the size of the model and the dtype of its weights.
It also depends on the phase of a text. So the first load of a model on a machine measures instead of guessing
(`runtime_py.engines.stored_speeds`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import NamedTuple

from o2o.cores import cores
from o2o.errors import ModelError
from runtime_py.engines.engine import Engine, EngineSession
from runtime_py.engines.phases import Phase

BUDGET = 1.5
"""Seconds of runs that a trial takes at most, besides a first run of each kind and loading."""
NEAR, FAR = 128, 512
"""Positions of the decode steps, where the capacity has them."""
SHORT, LONG = 128, 512
"""Tokens of the prompts, where the capacity and the time have room for them."""
MIN_PROMPT = 64
"""Tokens of the shortest prompt that says something about longer ones. Few prefill graphs read fewer."""
PREFILL_SPEEDUP = 5
"""About how many tokens of a prompt are read in the time of a decode step, before it is measured."""
FIRST_SHARE = 0.8
"""The share of the time for the engines on all cores."""
TOO_SLOW = 1.3
"""Time of a near decode step relative to all cores, from which a smaller number of threads is not tried
further."""
MAX_RUNS = 24
"""Runs of one kind. The fastest counts: others were disturbed."""


class Form(NamedTuple):
    """A way to run a model."""

    engine: str
    threads: int


@dataclass(frozen=True)
class Speed:
    """How fast a form is.

    Attributes:
        near: Seconds of a decode step at a position near the beginning of a text.
        far: Seconds of a decode step far behind it.
        prefill: Seconds of a token of a short prompt; None if there was no time to measure it.
        long_prefill: Seconds of a token of a long prompt; None if there was no time to measure it.
        load: Seconds of the fastest load.
    """

    near: float
    far: float
    prefill: float | None = None
    long_prefill: float | None = None
    load: float = 0.0

    def seconds(self, phase: Phase) -> float | None:
        """Return the seconds of a token in a phase.

        Args:
            phase: The phase.

        Returns:
            The seconds; None if they were not measured. A long prompt that was not measured is read as a
            short one.
        """
        match phase:
            case Phase.SHORT_PROMPT:
                return self.prefill
            case Phase.LONG_PROMPT:
                return self.prefill if self.long_prefill is None else self.long_prefill
            case Phase.NEAR_DECODE:
                return self.near
            case Phase.FAR_DECODE:
                return self.far

    def text(self, with_prompt: bool = True) -> float:
        """Return the seconds of a typical text: a prompt, and as many tokens after it.

        Args:
            with_prompt: Whether the prompt counts.

        Returns:
            Seconds for each pair of a token of the prompt and a new one.
        """
        prompts = [self.seconds(phase) or 0.0 for phase in (Phase.SHORT_PROMPT, Phase.LONG_PROMPT)]
        return (self.near + self.far) / 2 + sum(prompts) / 2 * with_prompt

    def fastest(self, other: Speed) -> Speed:
        """Join two measurements: other programs make runs slower, and never faster.

        Args:
            other: Another measurement of the same form.

        Returns:
            The smaller time of each kind.
        """
        return Speed(
            min(self.near, other.near),
            min(self.far, other.far),
            _smaller(self.prefill, other.prefill),
            _smaller(self.long_prefill, other.long_prefill),
            min(self.load, other.load),
        )


def _smaller(one: float | None, two: float | None) -> float | None:
    return min((number for number in (one, two) if number is not None), default=None)


Speeds = Mapping[Form, Speed]
Clock = Callable[[], float]
Loader = Callable[[Form], Engine]


def by_speed(speeds: Speeds) -> list[Form]:
    """Sort forms.

    Args:
        speeds: Their speeds.

    Returns:
        The forms, the fastest first. Prompts count if they were measured for all.
    """
    with_prompt = all(speed.prefill is not None for speed in speeds.values())
    return sorted(speeds, key=lambda form: speeds[form].text(with_prompt))


def of_scoring(speeds: Speeds) -> Speeds:
    """Return the speeds of scoring, which reads whole texts as prompts.

    Args:
        speeds: What was measured.

    Returns:
        The speeds with prompts alone, if they were measured for all forms.
    """
    if any(speed.prefill is None for speed in speeds.values()):
        return speeds
    return {form: replace(speed, near=0.0, far=0.0) for form, speed in speeds.items()}


def thread_counts() -> list[int]:
    """List the numbers of threads that may be the fastest.

    Returns:
        All cores; half of them, which may be all physical cores; and one: steps of a small model take less
        time than synchronizing threads.
    """
    return sorted({cores(), max(1, cores() // 2), 1}, reverse=True)


def run_trial(engines: Sequence[str], load: Loader, clock: Clock = time.perf_counter) -> dict[Form, Speed]:
    """Measure engines on all cores, then on fewer.

    Fewer threads are tried for each engine that is not much slower than the fastest one.

    Args:
        engines: Their names.
        load: Loads the model in a form.
        clock: Returns the time in seconds.

    Returns:
        The speeds of the forms that can be loaded, and are not given up.
    """
    all_cores, *fewer = thread_counts()
    speeds: dict[Form, Speed] = {}
    loads: dict[str, float] = {}
    left = BUDGET

    def try_form(form: Form, seconds: float) -> None:
        nonlocal left
        begin = clock()
        try:
            with closing(load(form)) as engine:
                ready = clock()
                loads[form.engine] = min(ready - begin, loads.get(form.engine, math.inf))
                most = speeds.get(Form(form.engine, all_cores))
                speed = measure(engine, seconds, clock, TOO_SLOW * most.near if most else math.inf)
                left = max(0.0, left - (clock() - ready))
        except ModelError:
            return  # it cannot run the model; a load of this form says why
        if speed is not None:
            speeds[form] = speed

    for name in engines:
        try_form(Form(name, all_cores), FIRST_SHARE * BUDGET / len(engines))
    fewest = [Form(form.engine, threads) for form in _near_the_fastest(speeds) for threads in fewer]
    for place, form in enumerate(fewest):
        try_form(form, left / (len(fewest) - place))
    return {form: replace(speed, load=loads[form.engine]) for form, speed in speeds.items()}


def _near_the_fastest(speeds: Speeds) -> list[Form]:
    """The forms that need little more time than the fastest one for some phase."""

    def is_near(form: Form, phase: Phase) -> bool:
        seconds = [other.seconds(phase) or math.inf for other in speeds.values()]
        return (speeds[form].seconds(phase) or math.inf) <= TOO_SLOW * min(seconds)

    return [form for form in by_speed(speeds) if any(is_near(form, phase) for phase in Phase)]


def measure(
    engine: Engine, seconds: float, clock: Clock = time.perf_counter, longest: float = math.inf
) -> Speed | None:
    """Measure a loaded engine.

    Args:
        engine: The engine.
        seconds: About how long that may take. Decode steps are run at least twice.
        clock: Returns the time in seconds.
        longest: Seconds of a near decode step from which the engine is given up.

    Returns:
        Its speed; None if it is given up.

    Raises:
        ModelError: The engine cannot run the model.
    """
    far = min(FAR, engine.capacity - 1)
    begin = clock()
    with closing(engine.open_session()) as session:
        session.prefill([0])
        near_step, far_step = _reachable(session, min(NEAR, far // 2)), _reachable(session, far)
        near = _fastest(lambda: session.decode(0, near_step), seconds / 6, clock)
        if near > longest:
            return None
        decode = near, _fastest(lambda: session.decode(0, far_step), seconds / 6, clock)
        prefills: list[float] = []
        estimate = near / PREFILL_SPEEDUP
        for most, least, share in ((SHORT, MIN_PROMPT, 0.4), (LONG, LONG, 1.0)):
            rest = seconds - (clock() - begin)
            length = most
            while length > least and (length * estimate > rest or length > engine.capacity // 2):
                length //= 2
            if length * estimate > rest or length > engine.capacity // 2:
                break
            prompt = [0] * length
            estimate = _fastest(lambda: session.prefill(prompt), rest * share, clock) / length  # noqa: B023
            prefills.append(estimate)
    short, long = [*prefills, None, None][:2]
    return Speed(*decode, short, long)


def _reachable(session: EngineSession, position: int) -> int:
    """The position, or 0 where the caches do not have rows before it unless they are read."""
    return position if session.reusable(position) == position else 0


def _fastest(run: Callable[[], object], seconds: float, clock: Clock) -> float:
    """Seconds of the fastest of several runs, without the first one, which has one-time work."""
    run()
    end, fastest = clock() + seconds, math.inf
    for _ in range(MAX_RUNS):
        begin = clock()
        run()
        now = clock()
        fastest = min(fastest, now - begin)
        if now >= end:
            break
    return fastest
