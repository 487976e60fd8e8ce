"""Loading of a model on the engine that selection prefers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from o2o.cli.text import counted
from o2o.errors import ModelError
from runtime_py.engines.division import Division, divide
from runtime_py.engines.engine import Engine
from runtime_py.engines.model_file import ModelFile
from runtime_py.engines.options import EngineOptions
from runtime_py.engines.phased_engine import PhasedEngine
from runtime_py.engines.registry import ENGINES, EngineSpec
from runtime_py.engines.selection import MEASURED, EngineChoice, candidates, choices, with_threads
from runtime_py.engines.speed_trial import Form, Speeds, of_scoring
from runtime_py.engines.stored_speeds import measured_speeds


@dataclass(frozen=True)
class LoadedEngine:
    """An engine that was loaded, why it was chosen, its number of threads, and what another one does."""

    engine: Engine
    choice: EngineChoice
    threads: int
    division: Division | None = None

    @property
    def name(self) -> str:
        """The name of the engine, or of the two engines that a text is divided between."""
        return self.choice.engine if self.division is None else self.division.name

    @property
    def description(self) -> str:
        """One line, as `litert (float32, 2 threads): measured fastest on this machine`."""
        dtype, threads = self.engine.weight_dtype, counted(self.threads, "thread")
        return f"{self.choice.engine} ({dtype}, {threads}): {self.choice.reason}"


def load_engine(file: Path, options: EngineOptions) -> LoadedEngine:
    """Load a model on the fastest engine that takes it.

    Args:
        file: A Circle, TFLite or ONNX file.
        options: Which engine, and how.

    Returns:
        The loaded engine. The caller closes it.

    Raises:
        ModelError: No engine takes the model; the message is the preferred engine's.
        UsageError: See `runtime_py.engines.selection.candidates`.
        OSError: The file cannot be read.
    """
    model = ModelFile(file)
    options = replace(options, log=_each_line_once(options.log))
    able = candidates(model, options)
    speeds = _speeds(model, [spec for spec in able.specs if spec.is_measured], options)
    if options.all_logits:
        speeds = of_scoring(speeds)
    first_error: ModelError | None = None

    def load(form: Form) -> Engine:
        return _load(ENGINES[form.engine], model, replace(options, threads=form.threads))

    if (division := _division(model, speeds, options)) is not None:
        with contextlib.suppress(ModelError):
            engine = PhasedEngine(
                load(division.main), lambda: load(division.other), division.phases, options.log
            )
            reason = f"{MEASURED}, with {division.description}"
            choice = EngineChoice(division.main.engine, reason)
            return LoadedEngine(engine, choice, division.main.threads, division)
    for form, choice in choices(able, speeds, options.threads):
        try:
            return LoadedEngine(load(form), choice, form.threads)
        except ModelError as error:
            first_error = first_error or error
    assert first_error is not None
    raise first_error


def _division(model: ModelFile, speeds: Speeds, options: EngineOptions) -> Division | None:
    """The division of texts between two forms; none for scoring, which prefills do alone."""
    speeds = with_threads(speeds, options.threads)
    requested = options.threads is None or any(form.threads == options.threads for form in speeds)
    return divide(speeds, model.size) if requested and not options.all_logits else None


def _speeds(model: ModelFile, specs: list[EngineSpec], options: EngineOptions) -> Speeds:
    """The speeds of the model, as far as there is a choice."""
    if not options.measures or not specs or (len(specs) == 1 and options.threads is not None):
        return {}

    def load(form: Form) -> Engine:
        return _load(ENGINES[form.engine], model, replace(options, threads=form.threads, compile_all=True))

    return measured_speeds(model, [spec.name for spec in specs], options, load)


def _load(spec: EngineSpec, model: ModelFile, options: EngineOptions) -> Engine:
    try:
        return spec.load(model, options)
    except ImportError as error:
        raise ModelError(f"the {spec.name} engine needs {spec.module} ({error}): {spec.install}") from error


def _each_line_once(log: Callable[[str], None]) -> Callable[[str], None]:
    """A log for several loads of one model, which say the same."""
    lines: set[str] = set()

    def once(line: str) -> None:
        if line not in lines:
            lines.add(line)
            log(line)

    return once
