"""Which engine runs a package: of those that are there, the one that measured fastest for such a model.

`python bench/engines.py` measures them in turn; what `fastest` says is what it said.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from o2o.errors import UsageError
from o2o.wording import counted

AUTO = "auto"
MODULES = {"litert": "ai_edge_litert", "onnx": "onnxruntime", "onert": "onert"}
"""The engines, by the names that users give them, the ones to be preferred first; what each needs."""
_INSTEAD = "give the model.circle behind it, or leave --engine out"
READ = {".circle": ("litert", "onnx", "onert"), ".tflite": ("litert",), ".onnx": ("onnx",)}
"""The engines that run a file."""
ASKABLE = (AUTO, *MODULES)
WORTH_SHARING: dict[str, float] = {"litert": 16_000_000, "onnx": 4_000_000, "onert": math.inf}
"""Bytes of a model from which threads pay."""


@dataclass(frozen=True)
class Choice:
    """An engine, and why that one, for a reader."""

    engine: str
    why: str


@dataclass(frozen=True)
class Running:
    """A choice that was made."""

    choice: Choice
    threads: int

    def told(self, weights: str) -> str:
        """In a line. weights: see `weights_of`."""
        return f"{self.choice.engine} ({weights}, {counted(self.threads, 'thread')}): {self.choice.why}"


def threads_for(engine: str, size: int) -> int:
    """How many threads pay for a model of so many bytes: one each core, or one alone for a step that is over
    before others have met it. `bench/threads.py` compares, package by package."""
    return cores() if size >= WORTH_SHARING[engine] else 1


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choices(file: Path, asked: str = AUTO) -> Iterator[Choice]:
    """The engines to try for the model in `file`, one after the other; one alone where it was `asked` for.

    Raises UsageError, at the first step, for an engine that runs no such files.
    """
    able = READ[file.suffix]
    if asked != AUTO:
        if asked not in able:
            raise UsageError(
                f"{file.name}: a {file.suffix} file runs on {able[0]}, not on {asked}: {_INSTEAD}"
            )
        yield Choice(asked, "asked for")
        return
    if len(able) == 1:
        yield Choice(able[0], f"what runs {file.suffix} files")
        return
    there = [engine for engine in installed() if engine in able]
    best, why = fastest(file)
    if best in there:
        yield Choice(best, why)
    for engine in there:
        if engine != best:
            yield Choice(engine, f"{best} would be faster, and is not to be had here")


def installed() -> list[str]:
    """The engines that are there, the ones to be preferred first."""
    return [engine for engine, module in MODULES.items() if importlib.util.find_spec(module)]


def fastest(file: Path) -> tuple[str, str]:
    """The engine that measured fastest for such a model as is in the Circle file `file`, and why."""
    return "litert", "measured fastest at every size"


def weights_of(file: Path) -> str:
    """How the weights of the model in `file` are stored: `float32`, `dynamic int8`, ...

    That is the recipe they were quantised by, where that was written down, else the type of most of their
    bytes. Raises ModelError.
    """
    from o2o import formats
    from o2o.formats.constants import storage_key
    from o2o.quantization.record import recorded

    if file.suffix == ".onnx":
        return _weights_of_onnx(file)
    model = formats.load(file)
    if steps := recorded(model):
        return str(steps[-1].get("recipe", "quantised")).replace("_", " ")
    constants = (value.const_value for graph in model.graphs for value in graph.initializers.values())
    stored = {storage_key(constant): constant for constant in constants if constant is not None}
    return _mostly((str(constant.dtype), constant.nbytes) for constant in stored.values())


def _weights_of_onnx(file: Path) -> str:
    import onnx_ir as ir

    graph = ir.load(file).graph
    packed = {
        node.inputs[1]: f"int{node.attributes['bits'].as_int()}"
        for node in graph
        if node.op_type == "MatMulNBits"
    }
    constants = [(value, value.const_value) for value in graph.initializers.values()]
    return _mostly(
        (packed.get(value, str(constant.dtype)), constant.nbytes)
        for value, constant in constants
        if constant is not None
    )


def _mostly(stored: Iterable[tuple[str, int]]) -> str:
    """The type, of those with their bytes, that has most of these."""
    sizes: Counter[str] = Counter()
    for dtype, nbytes in stored:
        sizes[dtype.lower()] += nbytes
    kind, _ = sizes.most_common(1)[0] if sizes else ("none", 0)
    return {"float": "float32"}.get(kind, kind)
