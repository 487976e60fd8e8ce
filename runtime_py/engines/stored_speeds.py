"""The speeds of a model on this machine, which are measured once and stored.

The result of a trial (`runtime_py.engines.speed_trial`) is an entry of the disk cache. Its key has the digest
of the model, the processor, the number of cores and the versions of the engines. A trial that other programs
disturbed is made again at a later load, when the machine is idle.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from o2o.cli.text import listed
from o2o.cores import cores
from runtime_py.engines import prepared_artifacts
from runtime_py.engines.model_file import ModelFile
from runtime_py.engines.options import EngineOptions
from runtime_py.engines.other_programs import OtherPrograms
from runtime_py.engines.registry import ENGINES
from runtime_py.engines.speed_trial import Clock, Form, Loader, Speed, Speeds, run_trial

MAX_TRIALS = 3
"""Trials of a model, if other programs disturb them."""
DISTURBANCE = 0.03
"""Cores that other programs use during a trial that is made again. Threads that wait for each other lose far
more time than another program uses."""
IDLE = 0.25
"""The share of the cores that was busy in the last minute, at most, where a trial is made again."""
_FILE = "speeds.json"


@dataclass(frozen=True)
class _Trials:
    """What is stored: the speeds, the number of trials, and whether the last one was disturbed."""

    speeds: Speeds
    number: int
    disturbed: bool

    @staticmethod
    def read(file: Path) -> _Trials:
        """The stored trials; none if they are damaged."""
        try:
            stored = json.loads(file.read_text())
            speeds = {
                Form(str(engine), int(threads)): Speed(*speeds)
                for engine, threads, *speeds in stored["speeds"]
            }
            return _Trials(speeds, int(stored["trials"]), bool(stored["disturbed"]))
        except (OSError, ValueError, TypeError, KeyError):
            return _Trials({}, 0, False)

    def write(self, file: Path) -> None:
        rows = [[*form, *astuple(speed)] for form, speed in self.speeds.items()]
        stored = {"trials": self.number, "disturbed": self.disturbed, "speeds": rows}
        file.write_text(json.dumps(stored))

    def joined(self, speeds: Speeds, disturbed: bool) -> _Trials:
        """These trials and another one."""
        both = {**self.speeds, **speeds}
        for form in self.speeds.keys() & speeds.keys():
            both[form] = self.speeds[form].fastest(speeds[form])
        return _Trials(both, self.number + 1, disturbed)


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
    cache = options.disk_cache
    if cache is None:
        return {}
    earlier = _Trials({}, 0, False)
    is_new = False

    def build(entry: Path) -> None:
        nonlocal is_new
        is_new = True
        if model.size >= prepared_artifacts.MIN_BYTES:  # a smaller one is measured at once
            options.log(f"measuring {listed(engines)} on this machine")
        others = OtherPrograms()
        speeds = run_trial(engines, load, clock)
        earlier.joined(speeds, others.cores >= DISTURBANCE).write(entry / _FILE)

    def find_or_build() -> Path | None:
        return prepared_artifacts.find_or_build(
            model,
            cache,
            f"speed of {listed(engines)}" + (", scoring" if options.all_logits else ""),
            variant=[cores(), *map(_version, engines)],
            estimate_size=lambda: 1000,
            build=build,
            log=lambda line: None,
        )

    if (entry := find_or_build()) is None:
        return {}
    stored = _Trials.read(entry / _FILE)
    if not is_new and stored.disturbed and stored.number < MAX_TRIALS and _is_idle():
        earlier = stored
        cache.remove(entry.name)
        entry = find_or_build()
        stored = stored if entry is None else _Trials.read(entry / _FILE)
    return stored.speeds


def _is_idle() -> bool:
    try:
        return os.getloadavg()[0] <= IDLE * cores()
    except OSError:  # the system does not say
        return False


def _version(engine: str) -> str:
    return prepared_artifacts.installed_version(ENGINES[engine].distribution)
