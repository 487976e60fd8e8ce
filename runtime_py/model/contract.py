"""A model's signatures, with every tensor named by its role, as engines need them.

The roles come from the file's `o2o.contract`, or for a file without one from `o2o.roles`. This module reads
a contract and refuses what cannot be run, so that no engine has to check it again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from o2o import metadata
from o2o.contract import METADATA_NAME, NUM_LOGITS, Role, Slot, loads, parse_role
from o2o.errors import ModelError
from o2o.signatures import classify_contract
from runtime_py.model.window_size import WindowSize

__all__ = ["Contract", "SignatureSpec", "Slot", "TensorSpec"]


@dataclass(frozen=True)
class TensorSpec:
    """An input or an output of a signature.

    Attributes:
        name: Its public name.
        role: Its role in the contract.
        dtype: Its numpy dtype.
        shape: Tokens [1, T]; position [1] of the first token, or [T] of each; mask [.., T, S] or [1, S];
            logits [1, T, V]. Keys, values and caches as `layout` says: "BNTH" is [1, K, T, H], "BTNH" is
            [1, T, K, H], with S for T in a cache, and fewer rows in a window cache.
    """

    name: str
    role: Role
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def kind(self) -> str:
        """The kind of its role, such as `tokens` or `key_cache`."""
        return self.role.kind

    @property
    def layout(self) -> str:
        """The axes of keys, values and caches, such as "BNTH"; "" for other tensors."""
        return self.role.layout or ""

    @property
    def slot(self) -> Slot:
        """The KV cache that this is, or that these rows belong to."""
        return self.role.slot

    @property
    def num_rows(self) -> int:
        """The number of rows: of a cache, or T of keys and values."""
        return self.shape[self.layout.index("T")]

    @property
    def capacity(self) -> int:
        """The number of positions of a text that a cache serves: S, also for a window cache of fewer rows."""
        return self.role.capacity or self.num_rows

    @property
    def heads(self) -> tuple[int, int]:
        """(K, H): the number of key/value heads and their dimension."""
        return self.shape[self.layout.index("N")], self.shape[self.layout.index("H")]


@dataclass(frozen=True)
class SignatureSpec:
    """The inputs and outputs of one entry point, in calling order."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def input(self, kind: str) -> TensorSpec | None:
        """Return the first input of this kind.

        Args:
            kind: A kind of role, such as `tokens`.

        Returns:
            The input, or None.
        """
        return next((tensor for tensor in self.inputs if tensor.kind == kind), None)

    def output(self, kind: str) -> TensorSpec | None:
        """Return the first output of this kind.

        Args:
            kind: A kind of role, such as `logits`.

        Returns:
            The output, or None.
        """
        return next((tensor for tensor in self.outputs if tensor.kind == kind), None)

    @property
    def length(self) -> int:
        """T: the number of tokens that one run takes."""
        return _required(self, "tokens").shape[1]

    @property
    def gives_logits(self) -> bool:
        """Whether it returns logits. After a prefill without logits, decode reads the last token."""
        return self.output("logits") is not None

    @cached_property
    def caches(self) -> dict[Slot, TensorSpec]:
        """The KV caches that it takes. A prefill that starts at position 0 only takes none."""
        return {tensor.slot: tensor for tensor in self.inputs if tensor.role.is_cache}

    @cached_property
    def capacity(self) -> int:
        """S: the number of positions that its KV caches serve; 0 without caches."""
        return max((cache.capacity for cache in self.caches.values()), default=0)

    @cached_property
    def window(self) -> WindowSize | None:
        """The size of its window caches; None if all caches are full."""
        caches = [cache for cache in self.caches.values() if cache.role.capacity is not None]
        if not caches:
            return None
        return WindowSize(caches[0].num_rows, max(cache.role.window or 1 for cache in caches))

    @cached_property
    def cache_outputs(self) -> dict[Slot, TensorSpec]:
        """The keys and values that it returns: whole caches, or the T new rows."""
        return {tensor.slot: tensor for tensor in self.outputs if tensor.role.is_rows}


@dataclass(frozen=True)
class Contract:
    """The prefill and decode signatures of a model, checked to fit together.

    Attributes:
        prefills: The prefills, the shortest first, of different lengths; none if decode reads prompts.
        decodes: The signatures that read one token, by cache capacity, ascending. The last holds S positions.
        vocab_size: V, the number of logits.
    """

    prefills: tuple[SignatureSpec, ...]
    decodes: Mapping[int, SignatureSpec]
    vocab_size: int

    @property
    def capacity(self) -> int:
        """S: the number of positions in the caches of the prefills and of the largest decode."""
        return max(self.decodes)

    @property
    def decode(self) -> SignatureSpec:
        """The decode signature of the largest capacity."""
        return self.decodes[self.capacity]

    @classmethod
    def parse(cls, contract: Mapping[str, Any]) -> Contract:
        """Parse the contract of a model with fixed shapes.

        `o2o.signatures` says which signature is decode, which are prefills and which are buckets.

        Args:
            contract: A contract as `o2o.contract.contract_of` returns it.

        Returns:
            The checked contract.

        Raises:
            ModelError: The contract is missing or damaged, or no engine could run it.
        """
        _require_signatures(contract)
        with metadata.reports_damage(METADATA_NAME):
            classified = classify_contract(contract["signatures"])
            decode = _signature(contract, classified.decode or "decode")  # raises, naming what is missing
            smaller = [_signature(contract, name) for name in classified.buckets]
            read = [_signature(contract, name) for name in classified.prefills or ["prefill"]]
        capacity, vocab_size = _check_decode(decode)
        decodes = {capacity: decode}
        for other in smaller:
            own = _check_bucket(other, decode, capacity, vocab_size)
            if (same := decodes.setdefault(own, other)) is not other:
                raise ModelError(
                    f"{same.name} and {other.name} both hold {own} positions: remove one of them"
                )
        for prefill in read:
            _check_prefill(prefill, decode, capacity, vocab_size)
        read.sort(key=lambda prefill: prefill.length)
        for one, other in pairwise(read):
            if one.length == other.length:
                raise ModelError(
                    f"{one.name} and {other.name} both take {one.length} tokens: remove one of them"
                )
        return cls(tuple(read), dict(sorted(decodes.items())), vocab_size)

    def parse_additional(
        self, contract: Mapping[str, Any], names: Iterable[str], *, logits: bool
    ) -> list[SignatureSpec]:
        """Parse signatures that an engine adds. They read several tokens at any position.

        Args:
            contract: A contract as `o2o.contract.contract_of` returns it.
            names: Their names.
            logits: Whether they return the logits of each token.

        Returns:
            The checked signatures.

        Raises:
            ModelError: One of them does not fit to a decode signature of this contract.
        """
        signatures = [_signature(contract, name) for name in names]
        for signature in signatures:
            decode = self.decodes.get(signature.capacity)
            if decode is None or logits > signature.gives_logits:
                raise ModelError(f"{signature.name} does not fit to decode")
            _check_prefill(signature, decode, signature.capacity, self.vocab_size)
        return signatures

    @classmethod
    def parse_decode(cls, contract: Mapping[str, Any]) -> Contract:
        """Parse the signature `decode` alone, for an engine that reads prompts with it.

        Args:
            contract: A contract as `o2o.contract.contract_of` returns it.

        Returns:
            The checked contract, without prefills.

        Raises:
            ModelError: The signature is missing or damaged, or no engine could run it.
        """
        with metadata.reports_damage(METADATA_NAME):
            decode = _signature(contract, classify_contract(contract["signatures"]).decode or "decode")
        capacity, vocab_size = _check_decode(decode)
        return cls((), {capacity: decode}, vocab_size)

    def require_plain_inputs(self) -> Contract:
        """Check that there is one position and no mask, for an engine that feeds nothing else.

        Returns:
            This contract.

        Raises:
            ModelError: A signature takes a mask, or several positions.
        """
        for signature in (*self.prefills, *self.decodes.values()):
            kinds = [tensor.kind for tensor in signature.inputs]
            if "mask" in kinds or kinds.count("position") > 1:
                raise ModelError(
                    f"{signature.name} takes a mask or several positions: run it with --engine litert"
                )
        return self

    @classmethod
    def parse_dynamic(cls, text: str | None) -> tuple[Contract, bool]:
        """Parse the contract of a graph for any number of tokens (ONNX).

        Its one signature `decode` serves as prefill, too: it is checked as both, for one token.

        Args:
            text: The JSON text of the contract, where a name stands for a number of tokens, as "T"; None for
                a model without.

        Returns:
            The contract with T = 1, and whether the graph returns logits of several tokens, not only of the
            last: of all, or of as many as its input `num_logits` says.

        Raises:
            ModelError: The contract is missing, damaged or newer, or no engine could run it.
        """
        contract = loads(text) if text is not None else {}
        _require_signatures(contract)
        decode = contract["signatures"].get("decode")
        if decode is None:
            _signature(contract, "decode")  # raises, naming what is missing
        with metadata.reports_damage(METADATA_NAME):
            dynamic = {
                entry["role"]: any(isinstance(size, str) for size in entry["shape"])
                for entry in (*decode["inputs"], *decode["outputs"])
                if "role" in entry
            }
            one_token = {
                direction: [
                    {**entry, "shape": [1 if isinstance(size, str) else size for size in entry["shape"]]}
                    for entry in decode[direction]
                ]
                for direction in ("inputs", "outputs")
            }
        if not dynamic.get("tokens"):
            raise ModelError("the model takes a fixed number of tokens: convert it with lower.onnx.py")
        parsed = cls.parse({"signatures": {"decode": one_token, "prefill": one_token}})
        return parsed, dynamic.get("logits", False)


def _require_signatures(contract: Mapping[str, Any]) -> None:
    if not contract.get("signatures"):
        raise ModelError(
            f"the model has no {METADATA_NAME}, which describes its inputs and outputs: "
            "find them with sign.contract.py"
        )


def _signature(contract: Mapping[str, Any], name: str) -> SignatureSpec:
    signatures = contract["signatures"]
    if (entries := signatures.get(name)) is None:
        raise ModelError(
            f"the model has no signature {name!r}, only {', '.join(map(repr, signatures))}: "
            "merge prefill and decode with merge.circles.py"
        )
    inputs = [_tensor(name, "input", entry) for entry in entries["inputs"] if not entry.get("unused")]
    outputs = [_tensor(name, "output", entry) for entry in entries["outputs"] if "role" in entry]
    return SignatureSpec(name, tuple(inputs), tuple(outputs))


def _tensor(signature: str, direction: str, entry: Mapping[str, Any]) -> TensorSpec:
    name, shape = entry["name"], tuple(int(size) for size in entry["shape"])
    dtype, role = np.dtype(str(entry["dtype"])), parse_role(entry)
    if role is None or not _serves(role, direction):
        role_text = f"the role {entry['role']!r}" if entry.get("role") else "no role"
        raise ModelError(f"{signature}: {direction} {name!r} has {role_text}, which engines do not support")
    if role.is_cache or role.is_rows:
        layout = entry["layout"]
        if sorted(layout) != sorted("BNTH") or len(shape) != 4:
            raise ModelError(
                f"{name!r}: shape {list(shape)} with layout {layout!r}: keys, values and "
                f"caches need the four axes B, N, T, H"
            )
        if role.layer is None:
            raise KeyError("layer")
    return TensorSpec(name, role, dtype, shape)


def _serves(role: Role, direction: str) -> bool:
    if direction == "input":
        return role.is_cache or role.kind in ("tokens", "position", "window_row", "mask", NUM_LOGITS)
    return role.is_rows or role.kind == "logits"


def _required(signature: SignatureSpec, kind: str) -> TensorSpec:
    tensor = signature.input(kind) or signature.output(kind)
    if tensor is None:
        raise ModelError(f"{signature.name} has no {kind}: export it again")
    return tensor


def _check_decode(decode: SignatureSpec) -> tuple[int, int]:
    """Return (S, V) of a decode signature that can be run."""
    _check_position(decode)
    logits = _required(decode, "logits")
    if (shape := _required(decode, "tokens").shape) != (1, 1):
        raise ModelError(f"{decode.name} takes tokens {list(shape)}, not one token [1, 1]")
    if not decode.caches:
        raise ModelError(f"{decode.name} takes no KV caches: export it with python -m export")
    capacities = {cache.capacity for cache in decode.caches.values()}
    if len(capacities) > 1:
        raise ModelError(
            f"the caches differ in capacity, {sorted(capacities)} positions: reshape them with reshape.io.py"
        )
    _check_window(decode)
    return capacities.pop(), logits.shape[-1]


def _check_bucket(bucket: SignatureSpec, decode: SignatureSpec, capacity: int, vocab_size: int) -> int:
    """Return the capacity of `bucket`, which must be decode with smaller caches."""
    own, logits = _check_decode(bucket)
    forms = [
        {slot: (cache.heads, cache.layout, cache.dtype) for slot, cache in signature.caches.items()}
        for signature in (bucket, decode)
    ]
    if own >= capacity or logits != vocab_size or forms[0] != forms[1]:
        raise ModelError(
            f"{bucket.name} is not decode with smaller caches: it returns {logits} logits from caches of "
            f"{own} positions, decode {vocab_size} from {capacity}: build it with bucket.kvcache.py"
        )
    return own


def _check_window(signature: SignatureSpec) -> None:
    """Window caches must have rows for a run, and the signature an input for the row of its first token."""
    if (size := signature.window) is None:
        return
    row = signature.input("window_row")
    caches = [cache for cache in signature.caches.values() if cache.role.capacity is not None]
    if row is None or math.prod(row.shape) != 1 or any(cache.num_rows != size.rows for cache in caches):
        raise ModelError(
            f"{signature.name} needs one input window_row [1] and the same number of rows in all window "
            "caches: build it with window.kvcache.py"
        )
    if signature.length > size.max_tokens:
        raise ModelError(
            f"{signature.name} reads {signature.length} tokens, and its window caches of {size.rows} rows "
            f"have room for {size.max_tokens}: build it with window.kvcache.py"
        )


def _check_position(signature: SignatureSpec) -> None:
    _required(signature, "position")
    for tensor in signature.inputs:
        if tensor.kind == "position" and math.prod(tensor.shape) not in (1, signature.length):
            raise ModelError(
                f"{signature.name}: {tensor.name!r} has shape {list(tensor.shape)}, neither [1] nor one "
                "position for each token"
            )


def _check_prefill(prefill: SignatureSpec, decode: SignatureSpec, capacity: int, vocab_size: int) -> None:
    """A prefill must fill every cache of decode. It may return logits."""
    tokens, logits = _required(prefill, "tokens"), prefill.output("logits")
    if len(tokens.shape) != 2 or tokens.shape[0] != 1:
        raise ModelError(f"{prefill.name} takes tokens {list(tokens.shape)}, not [1, T]: export it again")
    if logits is not None and logits.shape != (*tokens.shape, vocab_size):
        raise ModelError(
            f"{prefill.name} returns logits {list(logits.shape)} for tokens {list(tokens.shape)}, "
            f"not [1, T, {vocab_size}] for [1, T]: export it again"
        )
    if unpaired := prefill.cache_outputs.keys() ^ decode.caches.keys():
        kind, layer = min(unpaired)
        raise ModelError(f"layer {layer}: {prefill.name}'s {kind} or decode's {kind} cache is missing")
    if prefill.caches:
        _check_caches(prefill, decode, capacity)
    for slot, cache in decode.caches.items():
        rows = prefill.cache_outputs[slot]
        if rows.heads != cache.heads or rows.dtype != cache.dtype:
            raise ModelError(
                f"{prefill.name}'s {_describe(rows)} does not fit into decode's {_describe(cache)}"
            )


def _check_caches(prefill: SignatureSpec, decode: SignatureSpec, capacity: int) -> None:
    """A prefill that writes into caches must take the same caches as decode, at any position."""
    _check_position(prefill)
    _check_window(prefill)
    if unpaired := prefill.caches.keys() ^ decode.caches.keys():
        kind, layer = min(unpaired)
        raise ModelError(f"layer {layer}: only one of {prefill.name} and decode takes a {kind} cache")
    for slot, cache in decode.caches.items():
        own = prefill.caches[slot]
        if own.capacity != capacity:
            raise ModelError(
                f"{prefill.name} has caches of {own.capacity} positions, decode has {capacity}: export "
                f"them with the same --max-length"
            )
        if (own.shape, own.layout, own.dtype) != (cache.shape, cache.layout, cache.dtype):
            raise ModelError(
                f"{prefill.name}'s {_describe(own)} is not decode's {_describe(cache)}: "
                "apply the same filters to both"
            )
    if prefill.length > capacity:
        raise ModelError(
            f"{prefill.name} writes {prefill.length} rows into caches of {capacity}: export a shorter prefill"
        )


def _describe(tensor: TensorSpec) -> str:
    return f"{tensor.name!r} {list(tensor.shape)} {tensor.layout} {tensor.dtype}"
