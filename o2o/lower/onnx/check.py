"""Proof by running: the decode graph on LiteRT, token by token, against ONNX on ONNX Runtime (`--check`)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from o2o.check import SEED, TOLERANCE, Subject, Tensor
from o2o.cli.silence_stderr import quiet
from o2o.errors import ModelError
from o2o.formats.onnx_writer import write
from o2o.formats.tensors import is_quantized
from o2o.model import Model
from o2o.quantization.schemes import INT8
from o2o.signatures import decode_of

TOKENS = 6  # that are read from the beginning on, all but one of them at once
Slot = tuple[str, int | None]


def check(before: Model, lowered: ir.Model) -> str:
    """Run both on the same tokens, at the beginning and the end of the caches; what was compared, in words.

    before: the model that `lowered` was made of, read anew. Quantised weights are multiplied with what each
    runtime rounds its own way: results may be as far off as `INT8` says. Raises ModelError that says what
    differs.
    """
    decode = decode_of(before)
    rounded = any(is_quantized(value) for value in decode.graph.initializers.values())
    tolerance = INT8.tolerance if rounded else TOLERANCE
    with tempfile.TemporaryDirectory() as folder:  # models may be larger than memory
        write(lowered, Path(folder) / "model.onnx")
        new = _Onnx(Path(folder) / "model.onnx")
        old = _Circle(before, decode.name)
        worst = max(_compared(old, new, tolerance))
    return f"checked on ONNX Runtime against LiteRT: the same, within {worst:.1e} of the largest number"


def _compared(old: _Circle, new: _Onnx, tolerance: float) -> Iterator[float]:
    """How far off each result is. Raises ModelError for one that is too far."""
    count = min(TOKENS, old.capacity - 1)
    ids = np.random.default_rng(SEED).integers(0, old.limit, count + 1)
    expected = [old.step(int(token), position) for position, token in enumerate(ids[:count])]
    runs = [(0, ids[: count - 1]), (count - 1, ids[count - 1 : count])] if count > 1 else [(0, ids[:count])]
    for start, some in runs:
        position = start + len(some) - 1
        yield _near("logits", position, expected[position], new.step(some, start), tolerance)
    position = old.capacity - 1
    logits = old.step(int(ids[count]), position)
    yield _near("logits", position, logits, new.step(ids[count:], position), tolerance)
    for slot, cache in old.caches.items():
        yield _near(f"{slot[0]} of layer {slot[1]}", position, cache, new.caches[slot], tolerance)


def _near(what: str, position: int, expected: np.ndarray, found: np.ndarray, tolerance: float) -> float:
    gap = np.abs(expected.astype(np.float64) - found).max(initial=0)
    difference = float(gap / max(1.0, np.abs(expected).max(initial=0)))
    if not difference <= tolerance:  # nor is NaN
        raise ModelError(
            f"--check: ONNX gives another {what} at position {position}, off by {difference:.1e} of its "
            "largest number"
        )
    return difference


class _Circle:
    """The decode graph on LiteRT. caches: [K, S, H] by what they are."""

    def __init__(self, model: Model, name: str) -> None:
        self._subject, self._name = Subject(model, "the input"), name
        inputs, outputs = self._subject.ends[name]
        self._inputs, self._outputs = _by_slot(inputs), _by_slot(outputs)
        self._held = {
            slot: np.zeros(tensor.shape, tensor.dtype)
            for slot, (_, tensor) in self._inputs.items()
            if slot[0].endswith("_cache")
        }
        cache = self._inputs[next(iter(self._held))][1]
        assert cache.rows is not None
        self.capacity = cache.shape[cache.rows]
        self.limit = self._inputs["tokens", None][1].limit

    def step(self, token: int, position: int) -> np.ndarray:
        """The logits [V] of this token."""
        given: dict[Slot, np.ndarray | int] = {
            **self._held,
            ("tokens", None): token,
            ("position", None): position,
        }
        feeds = {
            name: np.broadcast_to(given[slot], tensor.shape).astype(tensor.dtype)
            for slot, (name, tensor) in self._inputs.items()
        }
        results = self._subject.run(self._name, feeds)
        for kind, layer in self._held:
            name, _ = self._outputs[kind.removesuffix("_cache"), layer]
            self._held[kind, layer] = results[name]
        return results[self._outputs["logits", None][0]].reshape(-1)

    @property
    def caches(self) -> dict[Slot, np.ndarray]:
        found = {}
        for slot, held in self._held.items():
            role = self._inputs[slot][1].role
            assert role is not None
            assert role.layout is not None
            found[slot] = held.transpose([role.layout.index(axis) for axis in "BNTH"])[0]
        return found


def _by_slot(ends: Mapping[str, Tensor]) -> dict[Slot, tuple[str, Tensor]]:
    return {(t.role.kind, t.role.layer): (name, t) for name, t in ends.items() if t.role is not None}


class _Onnx:
    """The same in ONNX."""

    def __init__(self, path: Path) -> None:
        """Raises ModelError where ONNX Runtime is not there, or does not take the model."""
        try:
            with quiet():
                import onnxruntime

                options = onnxruntime.SessionOptions()
                options.log_severity_level = 4
                self._session = onnxruntime.InferenceSession(
                    path, options, providers=["CPUExecutionProvider"]
                )
        except ImportError as error:
            raise ModelError("--check needs ONNX Runtime: pip install onnxruntime") from error
        except RuntimeError as error:
            raise ModelError(f"--check: ONNX Runtime does not take the model: {error}") from error
        ends = self._session.get_inputs()
        self._ids = np.int64 if "int64" in ends[0].type else np.int32
        self._held = {end.name: np.zeros(end.shape, np.float32) for end in ends[2:]}

    def step(self, ids: np.ndarray, position: int) -> np.ndarray:
        """The logits [V] of the last of these tokens."""
        feeds = {"tokens": ids[None].astype(self._ids), "position": np.array([position]), **self._held}
        logits, *present = self._session.run(None, feeds)
        self._held = dict(zip(self._held, present, strict=True))
        last: np.ndarray = logits[0, -1]
        return last

    @property
    def caches(self) -> dict[Slot, np.ndarray]:
        found: dict[Slot, np.ndarray] = {}
        for name, held in self._held.items():
            _, kind, layer = name.split("_")
            found[f"{kind}_cache", int(layer)] = held[0]
        return found
