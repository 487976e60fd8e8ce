"""`--check` of static caches: a decoder whose caches grow, and its static form, on ONNX Runtime.

Both read the same tokens behind the same past, of several lengths. In the static caches the rows behind the
past hold large random numbers, which no result may show.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from o2o.check.feeds import SEED
from o2o.check.model_copies import copied
from o2o.check.onnx_runner import OnnxRunner
from o2o.check.runner import Arrays
from o2o.check.signature_comparison import TOLERANCE
from o2o.cli.text import counted
from o2o.contract import Role
from o2o.errors import ModelError
from o2o.model import Model, dims_of
from o2o.rewriting.static_caches.interface import Interface, Sizes, fixed_input
from o2o.streams.temporary import temporary_folder

UNREAD = 1e3
"""The size of the numbers in rows behind the past."""


def check(growing: Model, static: Model, roles: Mapping[str, Role], sizes: Sizes) -> str:
    """Run both models behind pasts of several lengths, and compare logits and rows.

    Args:
        growing: The decoder whose caches grow.
        static: Its static form.
        roles: The roles of the inputs and outputs of `growing`, by name.
        sizes: The sizes of `static`.

    Returns:
        A sentence for the user: what was compared, and the largest difference.

    Raises:
        ModelError: A result differs, or a model does not run.
    """
    with temporary_folder() as folder:  # models may be larger than memory
        growing = copied(growing, os.path.join(folder, "growing"))
        static = copied(static, os.path.join(folder, "static"))
        comparison = _Comparison(growing, static, roles, sizes)
        room = sizes.capacity - sizes.tokens
        pasts = sorted({1, room // 2, room})
        for past in pasts:
            comparison.compare(past)
    return (
        f"checked on {comparison.static.engine}: the same behind {counted(len(pasts), 'past')} of up to "
        f"{room} tokens, within {comparison.worst:.1e} of the largest number"
    )


class _Comparison:
    def __init__(self, growing: Model, static: Model, roles: Mapping[str, Role], sizes: Sizes) -> None:
        self.sizes, self.roles = sizes, roles
        self.interface = Interface(growing.graphs[0], roles)
        self.inputs = list(growing.graphs[0].inputs)
        self.static_inputs = list(static.graphs[0].inputs)
        self.static_roles = {v.name or "": v.meta.get("role") for v in self.static_inputs}
        self.vocabulary = max(2, *(_rows(v) for v in self.static_inputs if self._kind(v) == "tokens"))
        self.names = growing.signatures[0].name, static.signatures[0].name
        self.growing, self.static = OnnxRunner(growing, "the original"), OnnxRunner(static, "the result")
        self.worst = 0.0

    def _kind(self, value: ir.Value) -> str | None:
        role = self.static_roles.get(value.name or "") or self.roles.get(value.name or "")
        return role.kind if role is not None else None

    def compare(self, past: int) -> None:
        """Run both models behind `past` tokens."""
        random = np.random.default_rng([SEED, past])
        ids = random.integers(0, self.vocabulary, self.sizes.tokens)
        static, growing = self._feeds(past, ids, random)
        expected = self.growing.run(self.names[0], growing).outputs
        actual = self.static.run(self.names[1], static).outputs
        for name, numbers in expected.items():
            if name not in actual:
                raise ModelError(f"--check: output {name} disappeared")
            role = self.roles.get(name)
            result = actual[name]
            if role is not None and role.is_rows and role.layout is not None:
                axis = role.layout.index("T")
                result = np.take(result, np.arange(past + self.sizes.tokens), axis)
            self._compare(name, past, numbers, result)

    def _compare(self, name: str, past: int, expected: np.ndarray, actual: np.ndarray) -> None:
        if expected.shape != actual.shape:
            raise ModelError(f"--check: {name} is {list(actual.shape)}, not {list(expected.shape)}")
        numbers, results = expected.astype(np.float64), actual.astype(np.float64)
        largest = float(np.abs(numbers).max(initial=0.0)) or 1.0
        difference = float(np.abs(numbers - results).max(initial=0.0)) / largest
        if not difference <= TOLERANCE:
            raise ModelError(
                f"--check: {name} differs by {difference:.1e} of its largest number behind {past} tokens"
            )
        self.worst = max(self.worst, difference)

    def _feeds(self, past: int, ids: np.ndarray, random: np.random.Generator) -> tuple[Arrays, Arrays]:
        """The inputs of the static model, and those of the growing one."""
        static: Arrays = {}
        for value in self.static_inputs:
            assert value.dtype is not None
            shape = [int(dim) for dim in dims_of(value) or ()]
            dtype = value.dtype.numpy()
            match self._kind(value):
                case "tokens":
                    static[value.name or ""] = ids.reshape(shape).astype(dtype)
                case "position":
                    static[value.name or ""] = np.full(shape, past, dtype)
                case _:
                    cache = random.standard_normal(shape)
                    behind = [slice(None)] * len(shape)
                    behind[self._token_axis(value)] = slice(past, None)
                    cache[tuple(behind)] *= UNREAD
                    static[value.name or ""] = cache.astype(dtype)
        growing = self.interface.positions(past, self.sizes)
        for value in self.inputs:
            assert value.dtype is not None
            name, dtype = value.name or "", value.dtype.numpy()
            rank = len(dims_of(value) or ())
            match self._kind(value):
                case "tokens":
                    growing[name] = ids.reshape([1] * (rank - 1) + [-1]).astype(dtype)
                case "mask":
                    growing[name] = self._mask(past, rank, value.dtype)
                case "key_cache" | "value_cache":
                    growing[name] = np.take(static[name], np.arange(past), self._token_axis(value))
                case _:
                    number = fixed_input(value, self.roles.get(name), self.sizes)
                    if number is not None:
                        growing[name] = number
        return static, growing

    def _token_axis(self, value: ir.Value) -> int:
        role = self.roles[value.name or ""]
        return (role.layout or "").index("T")

    def _mask(self, past: int, rank: int, dtype: ir.DataType) -> np.ndarray:
        tokens = self.sizes.tokens
        if rank < 4:
            return np.ones((1, past + tokens), dtype.numpy())
        visible = np.arange(past + tokens) <= past + np.arange(tokens)[:, None]
        if dtype.is_floating_point():
            return np.where(visible, 0, -np.inf)[None, None].astype(dtype.numpy())
        return visible[None, None].astype(dtype.numpy())


def _rows(tokens: ir.Value) -> int:
    """The number of rows of the tables that token ids look up."""
    tables = [use.node.inputs[0] for use in tokens.uses() if use.node.op_type == "Gather"]
    sizes = [(dims_of(table) or (0,))[0] for table in tables if table is not None]
    return min((size for size in sizes if isinstance(size, int) and size > 1), default=2)
