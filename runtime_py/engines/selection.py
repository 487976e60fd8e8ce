"""Which engine runs a package: of those that are there, the one that measured fastest for such a model.

`python bench/engines.py` measures them in turn; what `fastest` says is what it said.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from o2o.cli.arguments import positive_int
from o2o.cli.text import counted
from o2o.errors import UsageError
from runtime_py.model.weight_dtype import precision

AUTO = "auto"
MODULES = {"litert": "ai_edge_litert", "onnx": "onnxruntime", "onert": "onert"}
"""The engines, by the names that users give them, the ones to be preferred first; what each needs."""
_INSTEAD = "give the model.circle behind it, or leave --engine out"
READ = {".circle": ("litert", "onnx", "onert"), ".tflite": ("litert",), ".onnx": ("onnx",)}
"""The engines that run a file."""
ASKABLE = (AUTO, *MODULES)
WORTH_SHARING: dict[str, float] = {"litert": 8_000_000, "onnx": 4_000_000, "onert": math.inf}
"""Bytes of a model from which threads pay."""
ONNX_BELOW = {"float32": 64_000_000, "quantised": 32_000_000}
"""Bytes of a model below which ONNX Runtime is faster than LiteRT. How many times as fast it was, on two
cores (the demo model on one) that had little else to do, behind 128 tokens (16):

    parameters              decode                      prefill
                    float32   int8   int4       float32   int8   int4
       0.9 million      1.7    1.5    1.5           2.2    1.9    1.8
        15              1.0    0.85   0.8           2.4    1.9    1.2
        70                     0.92   0.85                 0.7    0.6
       135              0.91   0.85   0.87          1.6    0.6    0.5
     1,100                     0.91                        0.7

With 15 million and behind 512 tokens decode is 1.3, 1.6 and 1.7 times as fast (`python -m bench.peers`), for
it reads no more of the caches than there is. Its steps have less around them; XNNPACK is faster at
multiplying, as long as that is with few bits.
"""


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Let a command line say `--threads` and `--engine`."""
    parser.add_argument(
        "--threads", metavar="N", type=positive_int, help="default: one for each core, one for a small model"
    )
    parser.add_argument(
        "--engine", choices=ASKABLE, default=AUTO, help="default: the fastest for its size, if there"
    )


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
        """In a line. weights: see `runtime_py.model.weight_dtype`."""
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
    instead = f"{best} is faster at this size, and {'cannot run it' if best in there else 'is not installed'}"
    yield from (Choice(engine, instead) for engine in there if engine != best)


def installed() -> list[str]:
    """The engines that are there, the ones to be preferred first."""
    return [engine for engine, module in MODULES.items() if importlib.util.find_spec(module)]


def fastest(file: Path) -> tuple[str, str]:
    """The engine that measured fastest for such a model as is in the Circle file `file`, and why."""
    size = file.stat().st_size
    floats, quantised = ONNX_BELOW["float32"], ONNX_BELOW["quantised"]
    small = size < quantised or (size < floats and precision(file) == "float32")
    return ("onnx" if small else "litert"), f"measured fastest for {'small' if small else 'larger'} models"
