"""A package's model on each of the engines, ready to run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from o2o.errors import ModelError
from runtime_py.engines import Engine
from runtime_py.engines.disk_cache import Cache
from runtime_py.model.contract import Contract


@dataclass(frozen=True)
class Start:
    """What is wanted of an engine.

    threads: how many it may use. debug: let the runtime write its log to stderr. cache: for what a big model
    takes long for at its first load. say: is told, in a line, when that is done or fails. capacities: see
    `o2o.lower.litert.tuning`.
    """

    threads: int = 1
    debug: bool = False
    cache: Cache | None = None
    say: Callable[[str], None] = lambda line: None
    capacities: Sequence[int] | None = None


def start(engine: str, model: Path, wanted: Start) -> Engine:
    """The model in the file `model` on the engine of that name. Raises ModelError, OSError."""
    starts = {"litert": _litert, "onnx": _onnx, "onert": _onert}
    return starts[engine](model, wanted)


def _litert(model: Path, wanted: Start) -> Engine:
    from runtime_py.engines.litert.engine import LiteRtEngine
    from runtime_py.engines.litert.prepare import prepare

    prepared = prepare(model, wanted.cache, wanted.say, wanted.capacities)
    try:
        contract = Contract.parse(prepared.lowered.contract)
    except ModelError as error:
        raise ModelError(f"{model}: {error}") from error
    return LiteRtEngine(
        prepared.open(), contract, packed=prepared.packed, threads=wanted.threads, debug=wanted.debug
    )


def _onnx(model: Path, wanted: Start) -> Engine:
    from runtime_py.engines.onnx.engine import OnnxEngine
    from runtime_py.engines.onnx.prepare import translated

    with translated(model, wanted.cache, wanted.say) as onnx:
        try:
            return OnnxEngine(onnx, threads=wanted.threads, debug=wanted.debug)
        except ModelError as error:
            raise ModelError(f"{model}: {error}") from error


def _onert(model: Path, wanted: Start) -> Engine:
    from runtime_py.engines.onert.engine import OnertEngine

    return OnertEngine.load(model, threads=wanted.threads, debug=wanted.debug)
