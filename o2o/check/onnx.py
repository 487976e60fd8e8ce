"""`--check`: run the decode graph on LiteRT and the ONNX model on ONNX Runtime, and compare."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from o2o.check import SEED, TOLERANCE, IoTensor, LiteRtRunner
from o2o.cli.silence_stderr import silenced_stderr
from o2o.errors import ModelError
from o2o.formats.onnx_writer import write
from o2o.formats.tensors import is_quantized
from o2o.model import Model
from o2o.quantization.schemes import INT8
from o2o.signatures import decode_of

TOKENS = 6
"""Tokens to read from position 0 on: all but the last in one run of ONNX."""
RoleKey = tuple[str, int | None]
"""(role, layer) of an input or output."""


def check(before: Model, lowered: ir.Model) -> str:
    """Run both models on the same tokens, at the beginning and at the end of the caches.

    Each runtime rounds activations its own way before it multiplies quantized weights. Such models get the
    tolerance of int8 quantization.

    Args:
        before: The Circle model before lowering.
        lowered: The ONNX model of its decode graph.

    Returns:
        A sentence for the user: the runtimes and the largest difference.

    Raises:
        ModelError: Logits or caches differ, or ONNX Runtime is missing or rejects the model.
    """
    decode = decode_of(before)
    quantized = any(is_quantized(value) for value in decode.graph.initializers.values())
    tolerance = INT8.tolerance if quantized else TOLERANCE
    with tempfile.TemporaryDirectory() as folder:  # models may be larger than memory
        write(lowered, Path(folder) / "model.onnx")
        onnx = _OnnxRunner(Path(folder) / "model.onnx")
        circle = _CircleRunner(before, decode.name)
        worst = max(_differences(circle, onnx, tolerance))
    return f"checked on ONNX Runtime against LiteRT: the same, within {worst:.1e} of the largest number"


def _differences(circle: _CircleRunner, onnx: _OnnxRunner, tolerance: float) -> Iterator[float]:
    """Yield the difference of each result. Raises ModelError for one above the tolerance."""
    count = min(TOKENS, circle.capacity - 1)
    ids = np.random.default_rng(SEED).integers(0, circle.limit, count + 1)
    expected = [circle.step(int(token), position) for position, token in enumerate(ids[:count])]
    runs = [(0, ids[: count - 1]), (count - 1, ids[count - 1 : count])] if count > 1 else [(0, ids[:count])]
    for start, some in runs:
        position = start + len(some) - 1
        yield _difference("logits", position, expected[position], onnx.step(some, start), tolerance)
    position = circle.capacity - 1
    logits = circle.step(int(ids[count]), position)
    yield _difference("logits", position, logits, onnx.step(ids[count:], position), tolerance)
    for slot, cache in circle.caches.items():
        yield _difference(f"{slot[0]} of layer {slot[1]}", position, cache, onnx.caches[slot], tolerance)


def _difference(
    name: str, position: int, expected: np.ndarray, actual: np.ndarray, tolerance: float
) -> float:
    """The largest error relative to the largest number, at least 1. Raises ModelError above `tolerance`."""
    gap = np.abs(expected.astype(np.float64) - actual).max(initial=0)
    difference = float(gap / max(1.0, np.abs(expected).max(initial=0)))
    if not difference <= tolerance:  # NaN fails too
        raise ModelError(
            f"--check: {name} at position {position} differs between ONNX Runtime and LiteRT by "
            f"{difference:.1e} of its largest value"
        )
    return difference


class _CircleRunner:
    """The decode graph on LiteRT, one token at a time."""

    def __init__(self, model: Model, name: str) -> None:
        self._runner, self._name = LiteRtRunner(model, "the input"), name
        inputs, outputs = self._runner.io[name]
        self._inputs, self._outputs = _by_slot(inputs), _by_slot(outputs)
        self._caches = {
            slot: np.zeros(tensor.shape, tensor.dtype)
            for slot, (_, tensor) in self._inputs.items()
            if slot[0].endswith("_cache")
        }
        cache = self._inputs[next(iter(self._caches))][1]
        assert cache.token_axis is not None
        self.capacity = cache.shape[cache.token_axis]
        self.limit = self._inputs["tokens", None][1].limit

    def step(self, token: int, position: int) -> np.ndarray:
        """Run one token; return its logits [V]."""
        by_slot: dict[RoleKey, np.ndarray | int] = {
            **self._caches,
            ("tokens", None): token,
            ("position", None): position,
        }
        feeds = {
            name: np.broadcast_to(by_slot[slot], tensor.shape).astype(tensor.dtype)
            for slot, (name, tensor) in self._inputs.items()
        }
        results = self._runner.run(self._name, feeds)
        for kind, layer in self._caches:
            name, _ = self._outputs[kind.removesuffix("_cache"), layer]
            self._caches[kind, layer] = results[name]
        return results[self._outputs["logits", None][0]].reshape(-1)

    @property
    def caches(self) -> dict[RoleKey, np.ndarray]:
        """The KV caches [K, S, H]."""
        caches = {}
        for slot, cache in self._caches.items():
            role = self._inputs[slot][1].role
            assert role is not None
            assert role.layout is not None
            caches[slot] = cache.transpose([role.layout.index(axis) for axis in "BNTH"])[0]
        return caches


def _by_slot(tensors: Mapping[str, IoTensor]) -> dict[RoleKey, tuple[str, IoTensor]]:
    return {(t.role.kind, t.role.layer): (name, t) for name, t in tensors.items() if t.role is not None}


class _OnnxRunner:
    """The ONNX model on ONNX Runtime, any number of tokens at a time."""

    def __init__(self, path: Path) -> None:
        try:
            with silenced_stderr():
                import onnxruntime

                options = onnxruntime.SessionOptions()
                options.log_severity_level = 4
                self._session = onnxruntime.InferenceSession(
                    path, options, providers=["CPUExecutionProvider"]
                )
        except ImportError as error:
            raise ModelError("--check needs ONNX Runtime: pip install onnxruntime") from error
        except RuntimeError as error:
            raise ModelError(f"--check: ONNX Runtime rejects the model: {error}") from error
        tokens, _, *caches = self._session.get_inputs()
        self._ids_dtype = np.int64 if "int64" in tokens.type else np.int32
        self._caches = {cache.name: np.zeros(cache.shape, np.float32) for cache in caches}

    def step(self, ids: np.ndarray, position: int) -> np.ndarray:
        """Run these tokens; return the logits [V] of the last one."""
        feeds = {
            "tokens": ids[None].astype(self._ids_dtype),
            "position": np.array([position]),
            **self._caches,
        }
        logits, *present = self._session.run(None, feeds)
        self._caches = dict(zip(self._caches, present, strict=True))
        last: np.ndarray = logits[0, -1]
        return last

    @property
    def caches(self) -> dict[RoleKey, np.ndarray]:
        """The KV caches [K, S, H]."""
        caches: dict[RoleKey, np.ndarray] = {}
        for name, cache in self._caches.items():
            _, kind, layer = name.split("_")
            caches[f"{kind}_cache", int(layer)] = cache[0]
        return caches
