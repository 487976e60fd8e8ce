"""What an engine needs to know of a model: its signatures, with every tensor named by its role.

The file says it (`o2o.contract`, written by the exporter and kept true by every filter), or for a file made
elsewhere `runtime_py.model.ai_edge_roles`; this module only reads it and refuses what cannot be run, so that
no engine
has to check again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from o2o.errors import ModelError
from o2o.signatures import classify_contract

Slot = tuple[str, int]
"""One key or value cache: ("key" or "value", layer)."""

_CACHES = ("key_cache", "value_cache")
_ROWS = ("key", "value")
_ENDS = {"inputs": ("tokens", "position", *_CACHES), "outputs": ("logits", *_ROWS)}


@dataclass(frozen=True)
class Tensor:
    """An input or an output of a signature.

    shape: tokens [1, T]; position [1] of the first, or [T], one after the other; logits [1, T, V]; keys,
    values and their caches as `layout` says, "BNTH" is [1, K, T, H] and "BTNH" is [1, T, K, H], with S for T
    in a cache.
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

    @property
    def length(self) -> int:
        """T: how many tokens one run takes."""
        return _need(self, "tokens").shape[1]

    @property
    def gives_logits(self) -> bool:
        """Whether logits come out: of a prefill that makes none, decode gives them for the last token."""
        return self.output("logits") is not None

    @cached_property
    def caches(self) -> dict[Slot, Tensor]:
        """The caches that go in; none into a prefill that only reads a prompt's beginning."""
        return {tensor.slot: tensor for tensor in self.inputs if tensor.role in _CACHES}

    @cached_property
    def rows(self) -> dict[Slot, Tensor]:
        """The keys and values that come out: the whole caches where caches go in, else the T new rows."""
        return {tensor.slot: tensor for tensor in self.outputs if tensor.role in _ROWS}


@dataclass(frozen=True)
class Contract:
    """Prefills and decode signatures that fit together."""

    prefills: tuple[Signature, ...]
    """One at least, no two of one length, the shortest first; none where decode reads prompts, too."""
    decodes: Mapping[int, Signature]
    """Those that read one token, by the positions that their caches hold: the smallest first, at last S."""
    vocab_size: int
    """V: how many logits there are."""

    @property
    def capacity(self) -> int:
        """S: how many positions the caches hold, those of the prefills and the largest of decode."""
        return max(self.decodes)

    @property
    def decode(self) -> Signature:
        """The one that goes on to the last position."""
        return self.decodes[self.capacity]

    @classmethod
    def parse(cls, contract: Mapping[str, Any]) -> Contract:
        """Read a contract as `o2o.contract.contract_of` gives it.

        `o2o.signatures` says which signature is decode, which are prefills and which are buckets. Raises
        ModelError for a contract that is missing, or that no engine could run.
        """
        names = contract.get("signatures")
        if not names:
            raise ModelError(
                "the model says nothing of its inputs and outputs (no o2o.contract inside): "
                "build it with this toolchain's export and filters"
            )
        try:
            classified = classify_contract(names)
            decode = _signature(contract, classified.decode or "decode")  # whose check says what it lacks
            others = [_signature(contract, name) for name in classified.buckets]
            read = [_signature(contract, name) for name in classified.prefills or ["prefill"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"the model's o2o.contract is damaged: {error!r}") from error
        capacity, vocab_size = _check_decode(decode)
        decodes = {capacity: decode}
        for other in others:
            own = _check_smaller(other, decode, capacity, vocab_size)
            if (same := decodes.setdefault(own, other)) is not other:
                raise ModelError(f"{same.name} and {other.name} both hold {own} positions: leave one out")
        for prefill in read:
            _check_prefill(prefill, decode, capacity, vocab_size)
        read.sort(key=lambda prefill: prefill.length)
        for one, other in pairwise(read):
            if one.length == other.length:
                raise ModelError(
                    f"{one.name} and {other.name} both take {one.length} tokens: leave one of them out"
                )
        return cls(tuple(read), dict(sorted(decodes.items())), vocab_size)

    @classmethod
    def parse_decode(cls, contract: Mapping[str, Any]) -> Contract:
        """Read a contract of `decode` alone, for an engine that reads prompts with it. Raises ModelError."""
        try:
            decode = _signature(contract, classify_contract(contract["signatures"]).decode or "decode")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"the model's o2o.contract is damaged: {error!r}") from error
        capacity, vocab_size = _check_decode(decode)
        return cls((), {capacity: decode}, vocab_size)


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


def _check_decode(decode: Signature) -> tuple[int, int]:
    """(S, V) of a decode signature that can be run."""
    _check_position(decode)
    logits = _need(decode, "logits")
    if (shape := _need(decode, "tokens").shape) != (1, 1):
        raise ModelError(f"{decode.name} takes tokens {list(shape)}, not one at a time, [1, 1]")
    if not decode.caches:
        raise ModelError(f"{decode.name} has no key and value caches as inputs: export it with --mode decode")
    capacities = {cache.rows for cache in decode.caches.values()}
    if len(capacities) > 1:
        raise ModelError(f"the caches differ in capacity: {sorted(capacities)} positions: reshape them")
    return capacities.pop(), logits.shape[-1]


def _check_smaller(other: Signature, decode: Signature, capacity: int, vocab_size: int) -> int:
    """The capacity of `other`, which must do in smaller caches what `decode` does."""
    own, logits = _check_decode(other)
    kinds = [
        {slot: (cache.heads, cache.layout, cache.dtype) for slot, cache in signature.caches.items()}
        for signature in (other, decode)
    ]
    if own >= capacity or logits != vocab_size or kinds[0] != kinds[1]:
        raise ModelError(
            f"{other.name} is not decode with smaller caches: it gives {logits} logits from caches of {own} "
            f"positions, decode {vocab_size} from {capacity}; make it with bucket.caches.py"
        )
    return own


def _check_position(signature: Signature) -> None:
    position = _need(signature, "position")
    if position.shape not in ((1,), (signature.length,)):
        raise ModelError(
            f"{signature.name}: {position.name!r} {list(position.shape)} is neither [1] nor one a token"
        )


def _check_prefill(prefill: Signature, decode: Signature, capacity: int, vocab_size: int) -> None:
    """It must fill every cache of decode; logits of its tokens are welcome."""
    tokens, logits = _need(prefill, "tokens"), prefill.output("logits")
    if len(tokens.shape) != 2 or tokens.shape[0] != 1:
        raise ModelError(f"{prefill.name} takes tokens {list(tokens.shape)}, not [1, T]: export it so")
    if logits is not None and logits.shape != (*tokens.shape, vocab_size):
        raise ModelError(
            f"{prefill.name} makes logits {list(logits.shape)} of tokens {list(tokens.shape)}, "
            f"not [1, T, {vocab_size}] of [1, T]: export it so"
        )
    if lost := prefill.rows.keys() ^ decode.caches.keys():
        kind, layer = min(lost)
        raise ModelError(
            f"layer {layer}: {prefill.name}'s {kind} and decode's {kind} cache do not both exist"
        )
    if prefill.caches:
        _check_caches(prefill, decode, capacity)
    for slot, cache in decode.caches.items():
        rows = prefill.rows[slot]
        if rows.heads != cache.heads or rows.dtype != cache.dtype:
            raise ModelError(f"{prefill.name}'s {_told(rows)} does not fit into the cache {_told(cache)}")


def _check_caches(prefill: Signature, decode: Signature, capacity: int) -> None:
    """A prefill that writes into caches must take those of decode, at any position."""
    _check_position(prefill)
    if lost := prefill.caches.keys() ^ decode.caches.keys():
        kind, layer = min(lost)
        raise ModelError(f"layer {layer}: only one of {prefill.name} and decode takes a {kind} cache")
    for slot, cache in decode.caches.items():
        own = prefill.caches[slot]
        if own.rows != capacity:
            raise ModelError(
                f"{prefill.name} has caches of {own.rows} positions, decode of {capacity}: "
                "export them with one --max-length"
            )
        if (own.shape, own.layout, own.dtype) != (cache.shape, cache.layout, cache.dtype):
            raise ModelError(
                f"{prefill.name}'s {_told(own)} is not decode's {_told(cache)}: "
                "take them through the same filters"
            )
    if prefill.length > capacity:
        raise ModelError(
            f"{prefill.name} writes {prefill.length} rows into caches of {capacity}: export a shorter one"
        )


def _told(tensor: Tensor) -> str:
    return f"{tensor.name!r} {list(tensor.shape)} {tensor.layout} {tensor.dtype}"
