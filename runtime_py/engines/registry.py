"""The registry of engines: what each needs, reads and supports.

To add an engine:

    runtime_py/engines/NAME/    `engine.py` with `load` (see `engine.Engine`), and `prepare.py`
    this module                 its `EngineSpec`, which the flag --engine and all messages read;
                                `is_measured` if it may be the fastest
    pyproject.toml              its runtime as an extra; its package among the independent engines
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from o2o.cores import cores

if TYPE_CHECKING:
    from runtime_py.engines.engine import Engine
    from runtime_py.engines.model_file import ModelFile
    from runtime_py.engines.options import EngineOptions


@dataclass(frozen=True)
class EngineSpec:
    """One engine.

    Attributes:
        name: The name of the engine on a command line.
        module: The Python module that it needs.
        install: The command that installs it.
        suffixes: Suffixes of the model files that it runs.
        distribution: The name of the package that it is installed from.
        is_measured: Whether it may be the fastest (`runtime_py.engines.speed_trial`). If not, it is tried
            last, and runs on one thread.
        options: Names of the fields of `EngineOptions` that it supports.
        load: Loads a model; imports the runtime when it is called.
    """

    name: str
    module: str
    install: str
    suffixes: tuple[str, ...]
    distribution: str
    is_measured: bool
    options: frozenset[str]
    load: Callable[[ModelFile, EngineOptions], Engine]

    @property
    def installed(self) -> bool:
        """Whether its module can be found."""
        return importlib.util.find_spec(self.module) is not None

    @property
    def default_threads(self) -> int:
        """The number of threads if nothing was measured."""
        return cores() if self.is_measured else 1


def _load_litert(model: ModelFile, options: EngineOptions) -> Engine:
    from runtime_py.engines.litert.engine import load

    return load(model, options)


def _load_onnx(model: ModelFile, options: EngineOptions) -> Engine:
    from runtime_py.engines.onnx.engine import load

    return load(model, options)


def _load_onert(model: ModelFile, options: EngineOptions) -> Engine:
    from runtime_py.engines.onert.engine import load

    return load(model, options)


_SPECS = (
    EngineSpec(
        "litert",
        "ai_edge_litert",
        "pip install ai-edge-litert==2.3.0",
        (".circle", ".tflite", ".litertlm"),
        "ai-edge-litert",
        True,
        frozenset({"threads", "buckets", "disk_cache", "debug"}),
        _load_litert,
    ),
    EngineSpec(
        "onnx",
        "onnxruntime",
        "pip install onnxruntime==1.31.1",
        (".circle", ".onnx"),
        "onnxruntime",
        True,
        frozenset({"threads", "disk_cache", "debug"}),
        _load_onnx,
    ),
    EngineSpec(
        "onert",
        "onert",
        "pip install onert==0.1.0 (Linux, Python before 3.13)",
        (".circle",),
        "onert",
        False,
        frozenset({"threads", "debug"}),
        _load_onert,
    ),
)
ENGINES = {spec.name: spec for spec in _SPECS}
"""By name, in order of preference."""


def installed() -> list[str]:
    """List the installed engines.

    Returns:
        Their names, in order of preference.
    """
    return [spec.name for spec in ENGINES.values() if spec.installed]
