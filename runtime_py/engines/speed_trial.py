"""The speed trial: engines and numbers of threads are tried on a model, once, and their speeds are stored.

Which engine is the fastest depends on the processor, the size of the model and the dtype of its weights. So
the first load of a model on a machine measures instead of guessing. The result is an entry of the disk cache.
Its key has the digest of the model, the processor, the number of cores and the versions of the engines.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from o2o.cli.text import listed
from o2o.cores import cores
from o2o.errors import ModelError
from runtime_py.engines import prepared_artifacts
from runtime_py.engines.engine import Engine, EngineSession
from runtime_py.engines.model_file import ModelFile
from runtime_py.engines.options import EngineOptions
from runtime_py.engines.registry import ENGINES

BUDGET = 1.5
"""Seconds of runs that a trial takes at most, besides one run of each kind and the loading of engines."""
NEAR, FAR = 128, 512
"""Positions of the decode steps, where the capacity has them."""
PROMPT = 64
"""Tokens of the prompt."""
MAX_RUNS = 24
"""Runs of one kind. The fastest counts: others were disturbed."""
_FILE = "speeds.json"


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
        prefill: Seconds of a token of a prompt; None if there was no time to measure it.
    """

    near: float
    far: float
    prefill: float | None = None

    def text(self, with_prompt: bool = True) -> float:
        """Return the seconds of a typical text: a prompt, and as many tokens after it.

        Args:
            with_prompt: Whether the prompt counts.

        Returns:
            Seconds for each pair of a token of the prompt and a new one.
        """
        return (self.near + self.far) / 2 + (self.prefill or 0.0) * with_prompt


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


def measured_speeds(
    model: ModelFile,
    engines: Sequence[str],
    options: EngineOptions,
    load: Loader,
    clock: Clock = time.perf_counter,
) -> Speeds:
    """Return the speeds of a model on this machine. They are measured if the disk cache does not have them.

    Args:
        model: The model's file.
        engines: The names of the engines, at least one.
        options: `disk_cache`, `all_logits` and `log` are used.
        load: Loads the model in a form.
        clock: Returns the time in seconds.

    Returns:
        The speeds by form. Forms that cannot be loaded are missing. Empty if the cache cannot store them, or
        another process is measuring.

    Raises:
        OSError: The model's file cannot be read.
    """
    if options.disk_cache is None:
        return {}

    def build(entry: Path) -> None:
        if model.size >= prepared_artifacts.MIN_BYTES:  # a smaller one is measured at once
            options.log(f"measuring {listed(engines)} on this machine, once")
        speeds = run_trial(engines, load, clock)
        rows = [[*form, speed.near, speed.far, speed.prefill] for form, speed in speeds.items()]
        (entry / _FILE).write_text(json.dumps(rows))

    entry = prepared_artifacts.find_or_build(
        model,
        options.disk_cache,
        f"speed of {listed(engines)}" + (", scoring" if options.all_logits else ""),
        variant=[cores(), *(importlib.metadata.version(ENGINES[name].distribution) for name in engines)],
        estimate_size=lambda: 1000,
        build=build,
        log=lambda line: None,
    )
    return {} if entry is None else _read(entry / _FILE)


def _read(file: Path) -> Speeds:
    """The stored speeds; none if they are damaged."""
    try:
        rows = json.loads(file.read_text())
        return {Form(str(engine), int(threads)): Speed(*speeds) for engine, threads, *speeds in rows}
    except (OSError, ValueError, TypeError):
        return {}


def thread_counts() -> list[int]:
    """List the numbers of threads that may be the fastest.

    Returns:
        All cores; half of them, which may be all physical cores; and one: steps of a small model take less
        time than synchronizing threads.
    """
    return sorted({cores(), max(1, cores() // 2), 1}, reverse=True)


def run_trial(engines: Sequence[str], load: Loader, clock: Clock = time.perf_counter) -> dict[Form, Speed]:
    """Measure engines on all cores, then the fastest one on fewer.

    Args:
        engines: Their names.
        load: Loads the model in a form.
        clock: Returns the time in seconds.

    Returns:
        The speeds of the forms that can be loaded.
    """
    all_cores, *fewer = thread_counts()
    speeds: dict[Form, Speed] = {}
    left, forms = BUDGET, len(engines) + len(fewer)

    def measure_all(tried: Sequence[Form]) -> None:
        nonlocal left, forms
        for form in tried:
            try:
                with closing(load(form)) as engine:
                    begin = clock()
                    speeds[form] = measure(engine, left / forms, clock)
                    left = max(0.0, left - (clock() - begin))
            except ModelError:
                pass  # it cannot run the model; a load of this form says why
            forms -= 1

    measure_all([Form(name, all_cores) for name in engines])
    if speeds:
        measure_all([Form(by_speed(speeds)[0].engine, threads) for threads in fewer])
    return speeds


def measure(engine: Engine, seconds: float, clock: Clock = time.perf_counter) -> Speed:
    """Measure a loaded engine.

    Args:
        engine: The engine.
        seconds: About how long that may take. Decode steps are run at least twice.
        clock: Returns the time in seconds.

    Returns:
        Its speed.

    Raises:
        ModelError: The engine cannot run the model.
    """
    far = min(FAR, engine.capacity - 1)
    prompt = [0] * max(1, min(PROMPT, engine.capacity // 2))
    begin = clock()
    with closing(engine.open_session()) as session:
        session.prefill(prompt[:1])
        steps = [
            _fastest(lambda at=at: session.decode(0, at), seconds / 3, clock)  # type: ignore[misc]
            for at in (_reachable(session, min(NEAR, far // 2)), _reachable(session, far))
        ]
        rest = seconds - (clock() - begin)
        prefill = None
        if rest >= len(prompt) * steps[0] / 4:  # a token of a prompt takes a part of a step
            prefill = _fastest(lambda: session.prefill(prompt), rest, clock) / len(prompt)
    return Speed(steps[0], steps[1], prefill)


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
