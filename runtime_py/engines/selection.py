"""Selection of the engine that runs a model, and of its threads: the measured fastest, or the requested one.

`runtime_py.engines.speed_trial` measures them on the model itself. Two may divide a text
(`runtime_py.engines.division`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from o2o.errors import UsageError
from runtime_py.engines.model_file import ModelFile
from runtime_py.engines.options import AUTO, EngineOptions
from runtime_py.engines.registry import ENGINES, EngineSpec
from runtime_py.engines.speed_trial import Form, Speeds, by_speed

MEASURED = "measured fastest on this machine"


@dataclass(frozen=True)
class EngineChoice:
    """The name of an engine and the reason for choosing it, for display."""

    engine: str
    reason: str


class Candidates(NamedTuple):
    """The engines that may run a model, in order of preference, and the reason if only one may."""

    specs: list[EngineSpec]
    reason: str | None


def candidates(model: ModelFile, options: EngineOptions) -> Candidates:
    """Return the engines that may run a model.

    Args:
        model: The model's file.
        options: The requested engine, and the options that it must support.

    Returns:
        The requested engine only, else the installed engines.

    Raises:
        UsageError: The requested engine does not exist, or does not run such files. No engine supports the
            options.
    """
    suffix = model.path.suffix
    able = [spec for spec in ENGINES.values() if suffix in spec.suffixes]
    if options.engine != AUTO:
        if options.engine not in ENGINES:
            raise UsageError(f"there is no engine {options.engine!r}: choose {AUTO}, {' or '.join(ENGINES)}")
        requested = ENGINES[options.engine]
        if requested not in able:
            raise UsageError(
                f"{model.path.name}: a {suffix} file runs on {able[0].name}, not on {requested.name}: "
                "give the Circle file that it was made from, or omit --engine"
            )
        able = [requested]
    supporting = [spec for spec in able if options.requested <= spec.options]
    if not supporting:
        raise UsageError(_unsupported(model, able, options))
    if options.engine != AUTO:
        return Candidates(supporting, "requested by --engine")
    if len(able) == 1:
        return Candidates(able, f"the only engine for {suffix} files")
    if len(supporting) == 1:
        flags = ", ".join(f"--{name}" for name in sorted(options.requested))
        return Candidates(supporting, f"the only engine that supports {flags}")
    usable = [spec for spec in supporting if spec.installed]
    return Candidates(usable or supporting[:1], None)


def choices(able: Candidates, speeds: Speeds, threads: int | None) -> Iterator[tuple[Form, EngineChoice]]:
    """Yield the forms to try.

    Args:
        able: The engines that may run the model.
        speeds: What was measured; empty for nothing.
        threads: The requested number of threads; None for the fastest.

    Yields:
        A form of each engine, the fastest first. Engines that were not measured come last.
    """
    speeds = with_threads(speeds, threads)
    fastest: dict[str, Form] = {}
    for form in by_speed(speeds):
        fastest.setdefault(form.engine, form)
    names = [spec.name for spec in able.specs]
    order = [name for name in fastest if name in names] + [name for name in names if name not in fastest]
    for place, name in enumerate(order):
        measured = fastest.get(name)
        count = threads or (measured.threads if measured is not None else ENGINES[name].default_threads)
        reason = able.reason or _reason(place, name, order, speeds)
        yield Form(name, count), EngineChoice(name, reason)


def with_threads(speeds: Speeds, threads: int | None) -> Speeds:
    """Return the speeds of the forms with a number of threads.

    Args:
        speeds: What was measured.
        threads: The number of threads; None for any.

    Returns:
        The speeds of these forms; of all forms where the number was not measured.
    """
    return {form: speeds[form] for form in speeds if form.threads == threads} or speeds


def _reason(place: int, name: str, order: list[str], speeds: Speeds) -> str:
    if place:
        return f"{order[0]} goes before it, but cannot run the model"
    if len(order) == 1:
        return "the only installed engine"
    fastest = by_speed(speeds)
    if not fastest:
        return "the first in order of preference, not measured"
    others = [form for form in fastest if form.engine != name]
    if not others:
        return "the only measured engine that runs the model"
    with_prompt = all(speeds[form].prefill is not None for form in (fastest[0], others[0]))
    ratio = speeds[others[0]].text(with_prompt) / speeds[fastest[0]].text(with_prompt)
    return f"{MEASURED}, {ratio:.2f} times {others[0].engine}"


def _unsupported(model: ModelFile, specs: list[EngineSpec], options: EngineOptions) -> str:
    """Message for options that none of `specs` supports."""
    flags = ", ".join(f"--{name}" for name in sorted(options.requested - specs[0].options))
    others = [
        spec.name
        for spec in ENGINES.values()
        if options.requested <= spec.options and model.path.suffix in spec.suffixes
    ]
    remedy = f", or pass --engine {others[0]}" if others else ""
    return f"{model.path.name}: the {specs[0].name} engine does not support {flags}: omit it{remedy}"
