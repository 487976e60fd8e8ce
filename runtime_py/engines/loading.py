"""Loading of a model on the engine that selection prefers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from o2o.cli.text import counted
from o2o.errors import ModelError
from runtime_py.engines.engine import Engine
from runtime_py.engines.model_file import ModelFile
from runtime_py.engines.options import EngineOptions
from runtime_py.engines.registry import ENGINES, EngineSpec
from runtime_py.engines.selection import EngineChoice, candidates
from runtime_py.engines.threads import default_threads


@dataclass(frozen=True)
class LoadedEngine:
    """An engine that was loaded, why it was chosen, and its number of threads."""

    engine: Engine
    choice: EngineChoice
    threads: int

    @property
    def description(self) -> str:
        """One line, as `litert (float32, 2 threads): measured fastest for larger models`."""
        dtype, threads = self.engine.weight_dtype, counted(self.threads, "thread")
        return f"{self.choice.engine} ({dtype}, {threads}): {self.choice.reason}"


def load_engine(file: Path, options: EngineOptions) -> LoadedEngine:
    """Load a model on the first engine that takes it.

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
    first_error: ModelError | None = None
    for choice in candidates(model, options):
        spec = ENGINES[choice.engine]
        threads = options.threads or default_threads(model.size, spec.multithread_bytes)
        try:
            return LoadedEngine(_load(spec, model, replace(options, threads=threads)), choice, threads)
        except ModelError as error:
            first_error = first_error or error
    assert first_error is not None
    raise first_error


def _load(spec: EngineSpec, model: ModelFile, options: EngineOptions) -> Engine:
    try:
        return spec.load(model, options)
    except ImportError as error:
        raise ModelError(f"the {spec.name} engine needs {spec.module} ({error}): {spec.install}") from error
