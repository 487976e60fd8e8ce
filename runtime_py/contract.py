"""What an engine needs to know of a model: its two signatures, with every tensor named by its role.

The file says it (`o2o.contract`, written by the exporter and kept true by every filter); this module only
reads it and refuses what cannot be run, so that no engine has to check again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from o2o.errors import ModelError

Slot = tuple[str, int]
"""One key or value cache: ("key" or "value", layer)."""

_CACHES = ("key_cache", "value_cache")
_ROWS = ("key", "value")
_ENDS = {"inputs": ("tokens", "position", *_CACHES), "outputs": ("logits", *_ROWS)}


@dataclass(frozen=True)
class Tensor:
    """An input or an output of a signature.

    shape: tokens [1, T], position [1], logits [1, T, V]; keys, values and their caches as `layout` says,
    "BNTH" is [1, K, T, H] and "BTNH" is [1, T, K, H], with S for T in a cache.
    """

    name: str
    role: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    layer: int = 0
    layout: str = ""

    @property
    def slot(self) -> Slot:
        """The cache that this is, or whose rows this has."""
        return self.role.removesuffix("_cache"), self.layer

    @property
    def rows(self) -> int:
        """How many positions it holds: S of a cache, T of keys and values."""
        return self.shape[self.layout.index("T")]

    @property
    def heads(self) -> tuple[int, int]:
        """(K, H): how many heads, and how long each is."""
        return self.shape[self.layout.index("N")], self.shape[self.layout.index("H")]


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of one entry point, in calling order."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def input(self, role: str) -> Tensor | None:
        return next((tensor for tensor in self.inputs if tensor.role == role), None)

    def output(self, role: str) -> Tensor | None:
        return next((tensor for tensor in self.outputs if tensor.role == role), None)

    @cached_property
    def caches(self) -> dict[Slot, Tensor]:
        """The caches that go in."""
        return {tensor.slot: tensor for tensor in self.inputs if tensor.role in _CACHES}

    @cached_property
    def rows(self) -> dict[Slot, Tensor]:
        """The keys and values that come out: prefill's are of its own tokens, decode's the whole caches."""
        return {tensor.slot: tensor for tensor in self.outputs if tensor.role in _ROWS}


@dataclass(frozen=True)
class Contract:
    """A prefill and a decode signature that fit together."""

    prefill: Signature
    decode: Signature
    prefill_length: int
    """T: how many tokens one prefill takes."""
    capacity: int
    """S: how many positions the caches hold."""
    vocab_size: int
    """V: how many logits there are."""

    @classmethod
    def parse(cls, contract: Mapping[str, Any]) -> Contract:
        """Read a contract as `o2o.contract.contract_of` gives it.

        Raises ModelError for one that is missing, or that no engine could run.
        """
        if not contract.get("signatures"):
            raise ModelError(
                "the model says nothing of its inputs and outputs (no o2o.contract inside): "
                "build it with this toolchain's export and filters"
            )
        try:
            prefill = _signature(contract, "prefill")
            decode = _signature(contract, "decode")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"the model's o2o.contract is damaged: {error!r}") from error
        tokens, one = _need(prefill, "tokens"), _need(decode, "tokens")
        _need(decode, "position")
        logits, prompt_logits = _need(decode, "logits"), _need(prefill, "logits")
        if one.shape != (1, 1):
            raise ModelError(f"decode takes tokens {list(one.shape)}, not one at a time, [1, 1]")
        expected = (*tokens.shape, logits.shape[-1])
        if len(tokens.shape) != 2 or tokens.shape[0] != 1 or prompt_logits.shape != expected:
            raise ModelError(
                f"prefill makes logits {list(prompt_logits.shape)} of tokens {list(tokens.shape)}, "
                "not [1, T, V] of [1, T]: export it so"
            )
        if not decode.caches:
            raise ModelError("decode has no key and value caches as inputs: export it with --mode decode")
        capacities = {cache.rows for cache in decode.caches.values()}
        if len(capacities) > 1:
            raise ModelError(f"the caches differ in capacity: {sorted(capacities)} positions: reshape them")
        _check_rows(prefill, decode)
        return cls(prefill, decode, tokens.shape[1], capacities.pop(), logits.shape[-1])


def _signature(contract: Mapping[str, Any], name: str) -> Signature:
    entries = contract["signatures"].get(name)
    if entries is None:
        raise ModelError(
            f"the model has no signature {name!r}, only {', '.join(map(repr, contract['signatures']))}: "
            "merge prefill and decode with merge.circles.py"
        )
    ends = {}
    for end, roles in _ENDS.items():
        tensors = [_tensor(entry) for entry in entries[end] if end == "inputs" or "role" in entry]
        for tensor in tensors:
            if tensor.role not in roles:
                what = f"has the role {tensor.role!r}" if tensor.role else "has no role"
                raise ModelError(f"{name}: {end[:-1]} {tensor.name!r} {what}, which no engine can serve")
        ends[end] = tuple(tensors)
    return Signature(name, ends["inputs"], ends["outputs"])


def _tensor(entry: Mapping[str, Any]) -> Tensor:
    shape = tuple(int(n) for n in entry["shape"])
    tensor = Tensor(entry["name"], entry.get("role", ""), np.dtype(str(entry["dtype"])), shape)
    if tensor.role not in _CACHES + _ROWS:
        return tensor
    layout = entry["layout"]
    if sorted(layout) != sorted("BNTH") or len(tensor.shape) != 4:
        raise ModelError(f"{tensor.name!r}: {list(tensor.shape)} in layout {layout!r} is no key or value")
    return replace(tensor, layer=int(entry["layer"]), layout=layout)


def _need(signature: Signature, role: str) -> Tensor:
    tensor = signature.input(role) or signature.output(role)
    if tensor is None:
        raise ModelError(f"{signature.name} has no {role}: export it again")
    return tensor


def _check_rows(prefill: Signature, decode: Signature) -> None:
    """Every cache must be filled by prefill, and nothing else be produced."""
    if lost := prefill.rows.keys() ^ decode.caches.keys():
        kind, layer = min(lost)
        raise ModelError(f"layer {layer}: prefill's {kind} and decode's {kind} cache do not both exist")
    for slot, cache in decode.caches.items():
        rows = prefill.rows[slot]
        if rows.heads != cache.heads or rows.dtype != cache.dtype:
            made, kept = (f"{t.name!r} {list(t.shape)} {t.layout} {t.dtype}" for t in (rows, cache))
            raise ModelError(f"prefill's {made} does not fit into the cache {kept}")
