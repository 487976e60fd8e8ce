"""LiteRT's Interpreter, whose signature runners look at what they are given before they run.

    from runtime_py.interpreter import Interpreter       # in the place of ai_edge_litert.interpreter's

For models with the signatures of AI Edge: tokens [1, T], input_pos [T], kv_cache_k_0, kv_cache_v_0, ...
[1, S, K, H]. LiteRT itself takes caches of any shape and positions of any kind; what comes out then is
garbage, or an error about some operator. Here it is one line that says what is wrong and what to do.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from o2o.cli.silence_stderr import quiet
from o2o.cli.text import listed
from o2o.errors import UsageError

with quiet():
    from ai_edge_litert import interpreter as litert

TOKENS, POSITIONS, CACHE = "tokens", "input_pos", "kv_cache_"


class InputError(UsageError, ValueError):
    """What a signature was called with does not fit, in one line. A ValueError, as LiteRT's own are."""


class Interpreter(litert.Interpreter):
    """Takes what LiteRT's takes, and does what it does."""

    def get_signature_runner(self, signature_key: str | None = None) -> SignatureRunner:
        """The signature of that name, or the only one. Raises InputError, with those that there are."""
        names = list(self.get_signature_list())
        name = names[0] if signature_key is None and len(names) == 1 else signature_key
        if name is None or name not in names:
            what = "which signature?" if name is None else f"no signature {name!r}:"
            raise InputError(f"{what} the model has {listed(names) or 'none'}")
        return SignatureRunner(name, super().get_signature_runner(name))


class SignatureRunner:
    """The runner of one signature: call it with its inputs by name, get its outputs by name."""

    def __init__(self, name: str, runner: litert.SignatureRunner) -> None:
        self._name = name
        self._runner = runner
        self._inputs: Mapping[str, Any] = runner.get_input_details()

    def get_input_details(self) -> dict[str, Any]:
        """By name; see LiteRT's."""
        return self._runner.get_input_details()

    def get_output_details(self) -> dict[str, Any]:
        """By name; see LiteRT's."""
        return self._runner.get_output_details()

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Run it. Raises InputError for inputs that it cannot or should not run on."""
        self._check_names(inputs)
        for name, details in self._inputs.items():
            self._check_tensor(name, inputs[name], tuple(map(int, details["shape"])), details["dtype"])
        if POSITIONS in inputs:
            self._check_positions(inputs[POSITIONS])
        return self._runner(**inputs)

    def _refuse(self, what: str) -> NoReturn:
        raise InputError(f"{self._name}: {what}")

    def _check_names(self, inputs: Mapping[str, np.ndarray]) -> None:
        unknown = [name for name in inputs if name not in self._inputs]
        missing = [name for name in self._inputs if name not in inputs]
        told = [f"{listed(missing, 4)} missing"] if missing else []
        told += [f"there is no {listed(unknown, 4)}"] if unknown else []
        if told:
            names = sorted(self._inputs, key=lambda name: name.startswith(CACHE))
            self._refuse(f"{' and '.join(told)}: its inputs are {listed(names, 6)}")

    def _check_tensor(self, name: str, value: np.ndarray, shape: tuple[int, ...], dtype: Any) -> None:
        if not isinstance(value, np.ndarray):
            self._refuse(f"{name} is no numpy array but a {type(value).__name__}")
        if (value.shape, value.dtype) == (shape, dtype):
            return
        kind = np.dtype(dtype).name
        if name == POSITIONS:
            what = f"give np.arange(p, p + {shape[0]}, dtype=np.{kind})"
        elif name.startswith(CACHE):
            what = f"begin with np.zeros({shape}, np.{kind}), go on with what came out"
        elif name == TOKENS and value.dtype == dtype and value.ndim == len(shape):
            what = f"pad a shorter prompt at its end, read a longer one {shape[-1]} tokens at a time"
        else:
            what = "give what it takes"
        self._refuse(f"{name} is {value.dtype} {list(value.shape)}, not {kind} {list(shape)}: {what}")

    def _check_positions(self, positions: np.ndarray) -> None:
        first, last = int(positions[0]), int(positions[-1])
        wrong = np.flatnonzero(positions != first + np.arange(positions.size))
        if wrong.size:
            at = int(wrong[0])
            padded = not positions[at:].any()
            what = "is padded with zeros" if padded else f"goes from {positions[at - 1]} to {positions[at]}"
            self._refuse(
                f"{POSITIONS} {what} at index {at}: positions that repeat or are left out corrupt the rotary "
                "embedding and the caches; pad the tokens, and let positions go on: "
                f"np.arange({first}, {first + positions.size}, dtype=np.{positions.dtype})"
            )
        capacity = self._capacity()
        if first < 0 or last >= capacity:
            self._refuse(
                f"{POSITIONS} is {first} to {last}, and the caches hold 0 to {capacity - 1}: end before, or "
                "convert the model with a larger --kv_cache_max_len"
            )

    def _capacity(self) -> int:
        """S, how many positions the caches hold."""
        shapes = [tensor["shape"] for name, tensor in self._inputs.items() if name.startswith(CACHE)]
        return min((int(shape[1]) for shape in shapes), default=sys.maxsize)
