"""Selection of the engine that runs a model: the fastest one for its size, or the requested one.

`python bench/engines.py` measures the engines against each other; `fastest` follows its figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from o2o.errors import UsageError
from runtime_py.engines.model_file import ModelFile
from runtime_py.engines.options import AUTO, EngineOptions
from runtime_py.engines.registry import ENGINES, EngineSpec

ONNX_BELOW = {"float32": 64_000_000, "quantized": 32_000_000}
"""Bytes of a Circle model below which ONNX Runtime is faster than LiteRT.

Speed of ONNX Runtime relative to LiteRT, on two otherwise idle cores (the demo model on one), after 128
tokens (16 for the demo model):

    parameters              decode                      prefill
                    float32   int8   int4       float32   int8   int4
       0.9 million      1.7    1.5    1.5           2.2    1.9    1.8
        15              1.0    0.85   0.8           2.4    1.9    1.2
        70                     0.92   0.85                 0.7    0.6
       135              0.91   0.85   0.87          1.6    0.6    0.5
     1,100                     0.91                        0.7

With 15 million parameters and 512 tokens of context, decode is 1.3, 1.6 and 1.7 times as fast
(`python -m bench.peers`): ONNX Runtime reads only the valid rows of the KV caches. Its overhead per step is
lower; XNNPACK multiplies quantized weights faster.
"""


@dataclass(frozen=True)
class EngineChoice:
    """The name of an engine and the reason for choosing it, for display."""

    engine: str
    reason: str


def candidates(model: ModelFile, options: EngineOptions) -> Iterator[EngineChoice]:
    """Yield the engines to try for a model.

    Args:
        model: The model's file.
        options: The requested engine, and the options that it must support.

    Yields:
        The requested engine only, else the installed engines, the fastest first.

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
        yield EngineChoice(options.engine, "requested by --engine")
    elif len(able) == 1:
        yield EngineChoice(able[0].name, f"the only engine for {suffix} files")
    elif len(supporting) == 1:
        (only,) = supporting
        flags = ", ".join(f"--{name}" for name in sorted(options.requested))
        yield EngineChoice(only.name, f"the only engine that supports {flags}")
    else:
        yield from _by_speed(model, [spec.name for spec in supporting if spec.installed])


def _by_speed(model: ModelFile, available: Sequence[str]) -> Iterator[EngineChoice]:
    best = fastest(model)
    size = "small" if best == "onnx" else "larger"
    if best in available:
        yield EngineChoice(best, f"measured fastest for {size} models")
    obstacle = "cannot run it" if best in available else "is not installed"
    for name in available:
        if name != best:
            yield EngineChoice(name, f"{best} is faster at this size, but {obstacle}")


def _unsupported(model: ModelFile, specs: Sequence[EngineSpec], options: EngineOptions) -> str:
    """Message for options that none of `specs` supports."""
    flags = ", ".join(f"--{name}" for name in sorted(options.requested - specs[0].options))
    others = [
        spec.name
        for spec in ENGINES.values()
        if options.requested <= spec.options and model.path.suffix in spec.suffixes
    ]
    remedy = f", or pass --engine {others[0]}" if others else ""
    return f"{model.path.name}: the {specs[0].name} engine does not support {flags}: omit it{remedy}"


def fastest(model: ModelFile) -> str:
    """Return the name of the engine that was fastest in measurements of such models.

    Args:
        model: A Circle file. It is read only if the choice depends on the weight dtype.

    Returns:
        A name of `ENGINES`, installed or not.
    """
    small = model.size < ONNX_BELOW["quantized"]
    if not small and model.size < ONNX_BELOW["float32"]:
        small = model.weight_dtype == "float32"
    return "onnx" if small else "litert"
