"""LiteRT's Interpreter with signature runners that check their inputs.

    from runtime_py.interpreter import Interpreter       # instead of ai_edge_litert.interpreter's

For models with AI Edge's signatures: tokens [1, T], input_pos [T], kv_cache_k_0, kv_cache_v_0, ... [1, S, K,
H]. LiteRT itself accepts caches of any shape and any positions. It then returns wrong numbers, or an error of
an internal operator. This interpreter raises an error of one line with the cause and the remedy.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NoReturn

import numpy as np

from o2o.cli.silence_stderr import silenced_stderr
from o2o.cli.text import listed
from o2o.errors import ModelError, UsageError

with silenced_stderr():
    from ai_edge_litert import interpreter as litert

TOKENS, POSITIONS, CACHE, LOGITS = "tokens", "input_pos", "kv_cache_", "logits"


class InputError(UsageError, ValueError):
    """An input that does not fit its signature. It is a ValueError, like LiteRT's own errors."""


class Interpreter(litert.Interpreter):
    """A drop-in replacement of LiteRT's Interpreter."""

    def get_signature_runner(self, signature_key: str | None = None) -> SignatureRunner:
        """Return the runner of a signature.

        Args:
            signature_key: Its name; None if the model has only one.

        Returns:
            A runner that checks its inputs.

        Raises:
            InputError: There is no such signature, or several and no name.
        """
        names = list(self.get_signature_list())
        name = names[0] if signature_key is None and len(names) == 1 else signature_key
        if name is None or name not in names:
            problem = "which signature?" if name is None else f"no signature {name!r}:"
            raise InputError(f"{problem} the model has {listed(names) or 'none'}")
        return SignatureRunner(name, super().get_signature_runner(name), self._vocab_size)

    @cached_property
    def _vocab_size(self) -> int:
        """V, from a signature that returns logits; prefills return none."""
        for name in self.get_signature_list():
            outputs = super().get_signature_runner(name).get_output_details()
            if LOGITS in outputs:
                return int(outputs[LOGITS]["shape"][-1])
        return sys.maxsize


class SignatureRunner:
    """The runner of one signature. Call it with the inputs by name; it returns the outputs by name."""

    def __init__(self, name: str, runner: litert.SignatureRunner, vocab_size: int = sys.maxsize) -> None:
        """Wrap a runner of LiteRT.

        Args:
            name: The signature's name, for messages.
            runner: LiteRT's runner.
            vocab_size: V. Every token id is below it.
        """
        self._name = name
        self._vocab_size = vocab_size
        self._runner = runner
        self._inputs: Mapping[str, Any] = runner.get_input_details()

    def get_input_details(self) -> dict[str, Any]:
        """See `litert.SignatureRunner`."""
        return self._runner.get_input_details()

    def get_output_details(self) -> dict[str, Any]:
        """See `litert.SignatureRunner`."""
        return self._runner.get_output_details()

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Run the signature.

        Args:
            inputs: The input arrays by name.

        Returns:
            The output arrays by name.

        Raises:
            InputError: An input is missing or does not fit, or an id is not from 0 to V - 1.
            ModelError: LiteRT cannot run the signature.
        """
        self._check_names(inputs)
        for name, details in self._inputs.items():
            self._check_tensor(name, inputs[name], tuple(map(int, details["shape"])), details["dtype"])
        if POSITIONS in inputs:
            self._check_positions(inputs[POSITIONS])
        if TOKENS in inputs:
            self._check_ids(inputs[TOKENS])
        try:
            return self._runner(**inputs)
        except RuntimeError as error:
            raise ModelError(f"{self._name}: LiteRT fails: {' '.join(str(error).split())}") from error

    def _refuse(self, problem: str) -> NoReturn:
        raise InputError(f"{self._name}: {problem}")

    def _check_names(self, inputs: Mapping[str, np.ndarray]) -> None:
        unknown = [name for name in inputs if name not in self._inputs]
        missing = [name for name in self._inputs if name not in inputs]
        problems = [f"{listed(missing, 4)} missing"] if missing else []
        problems += [f"there is no {listed(unknown, 4)}"] if unknown else []
        if problems:
            names = sorted(self._inputs, key=lambda name: name.startswith(CACHE))
            self._refuse(f"{' and '.join(problems)}: its inputs are {listed(names, 6)}")

    def _check_tensor(self, name: str, value: np.ndarray, shape: tuple[int, ...], dtype: Any) -> None:
        if not isinstance(value, np.ndarray):
            self._refuse(f"{name} is a {type(value).__name__}, not a numpy array")
        if (value.shape, value.dtype) == (shape, dtype):
            return
        kind = np.dtype(dtype).name
        if name == POSITIONS:
            remedy = f"pass np.arange(p, p + {shape[0]}, dtype=np.{kind})"
        elif name.startswith(CACHE):
            remedy = f"start with np.zeros({shape}, np.{kind}), then pass the caches of the last run"
        elif name == TOKENS and value.dtype == dtype and value.ndim == len(shape):
            remedy = f"pad a shorter prompt at its end, read a longer one {shape[-1]} tokens at a time"
        else:
            remedy = "convert it"
        self._refuse(f"{name} is {value.dtype} {list(value.shape)}, not {kind} {list(shape)}: {remedy}")

    def _check_positions(self, positions: np.ndarray) -> None:
        first, last = int(positions[0]), int(positions[-1])
        wrong = np.flatnonzero(positions != first + np.arange(positions.size))
        if wrong.size:
            at = int(wrong[0])
            padded = not positions[at:].any()
            problem = (
                "is padded with zeros" if padded else f"jumps from {positions[at - 1]} to {positions[at]}"
            )
            self._refuse(
                f"{POSITIONS} {problem} at index {at}: repeated or missing positions corrupt the rotary "
                "embedding and the caches; pad the tokens, and pass consecutive positions: "
                f"np.arange({first}, {first + positions.size}, dtype=np.{positions.dtype})"
            )
        capacity = self._capacity()
        if first < 0 or last >= capacity:
            self._refuse(
                f"{POSITIONS} is {first} to {last}, but the caches hold 0 to {capacity - 1}: stop earlier, "
                "or convert the model with a larger --kv_cache_max_len"
            )

    def _check_ids(self, tokens: np.ndarray) -> None:
        for number in (int(tokens.min()), int(tokens.max())):
            if not 0 <= number < self._vocab_size:
                self._refuse(
                    f"{TOKENS} has {number}, the model has token ids from 0 to {self._vocab_size - 1}"
                )

    def _capacity(self) -> int:
        """S, the number of positions in the caches."""
        shapes = [tensor["shape"] for name, tensor in self._inputs.items() if name.startswith(CACHE)]
        return min((int(shape[1]) for shape in shapes), default=sys.maxsize)
