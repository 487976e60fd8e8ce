"""Which signature of a language model is decode, which are prefills, and which are buckets.

The rule looks at roles (`o2o.contract`) and at the number of tokens T that a signature reads, not at names:

    decode    takes KV caches and reads one token
    bucket    does the same as decode with a smaller capacity
    prefill   any other signature that reads tokens

Several signatures may take KV caches and read one token. Decode is then chosen in three steps: signatures
that give logits; the largest capacity S; the name `decode`. If several remain, the model has no decode.

T is the number of elements of the input with the role `tokens`. A signature without that input, such as one
that reads embeddings, counts as reading one token. So does an ONNX graph for any number of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from o2o.contract import Role, parse_role, role_of
from o2o.errors import ModelError

if TYPE_CHECKING:
    from o2o.model import Model, Signature

S = TypeVar("S")


@dataclass(frozen=True)
class SignatureFacts:
    """The facts about one signature that the rule uses.

    Attributes:
        name: The signature's name, which only breaks ties.
        tokens: T; None without an input of the role `tokens`, and where T is symbolic (ONNX).
        takes_caches: Whether KV caches are among the inputs.
        capacity: The largest capacity S of these caches, also of window caches, which have fewer rows; 0
            where no layout says which axis that is.
        gives_logits: Whether logits are among the outputs.
    """

    name: str
    tokens: int | None
    takes_caches: bool
    capacity: int
    gives_logits: bool

    @classmethod
    def of(
        cls, name: str, inputs: Iterable[tuple[Role, Sequence[int | str]]], outputs: Iterable[Role]
    ) -> SignatureFacts:
        """Return the facts about a signature.

        Args:
            name: The signature's name.
            inputs: Role and shape of each input that has a role.
            outputs: The role of each output that has one.

        Returns:
            The facts.
        """
        tokens, takes_caches, capacity = None, False, 0
        for role, shape in inputs:
            if role.kind == "tokens":
                sizes = [dim for dim in shape if isinstance(dim, int)]
                tokens = math.prod(sizes) if len(sizes) == len(shape) else None
            elif role.is_cache:
                takes_caches = True
                rows = shape[role.layout.index("T")] if role.layout is not None else None
                rows = role.capacity or rows
                capacity = max(capacity, rows) if isinstance(rows, int) else capacity
        return cls(name, tokens, takes_caches, capacity, any(role.kind == "logits" for role in outputs))

    @property
    def can_decode(self) -> bool:
        return self.takes_caches and self.tokens in (None, 1)

    @property
    def rank(self) -> tuple[bool, int]:
        return self.gives_logits, self.capacity


@dataclass(frozen=True)
class Classified(Generic[S]):
    """The signatures of a model by their purpose.

    Attributes:
        decode: The signature that continues a text up to the full capacity.
        prefills: By T, the smallest first.
        buckets: By capacity, the smallest first.
    """

    decode: S | None
    prefills: list[S]
    buckets: list[S]


def classify(signatures: Sequence[tuple[S, SignatureFacts]]) -> Classified[S]:
    """Apply the rule of this module to signatures in any representation.

    Args:
        signatures: Each signature with its facts, in the order of the file.

    Returns:
        The same signatures, sorted into decode, prefills and buckets.
    """
    best = max((facts.rank for _, facts in signatures if facts.can_decode), default=(False, 0))
    decodes = [pair for pair in signatures if pair[1].can_decode and pair[1].rank == best]
    if len(decodes) > 1:
        decodes = [pair for pair in decodes if pair[1].name == "decode"]
    prefills, buckets = [], []
    for pair in signatures:
        facts = pair[1]
        if pair in decodes[:1]:
            continue
        if facts.can_decode and facts.gives_logits == best[0] and facts.capacity < best[1]:
            buckets.append(pair)
        elif facts.tokens is not None:
            prefills.append(pair)
    prefills.sort(key=lambda pair: pair[1].tokens or 0)
    buckets.sort(key=lambda pair: pair[1].capacity)
    return Classified(
        decodes[0][0] if decodes else None,
        [signature for signature, _ in prefills],
        [signature for signature, _ in buckets],
    )


def classify_contract(signatures: Mapping[str, Any]) -> Classified[str]:
    """Apply the rule of this module to the signatures of a contract.

    Args:
        signatures: The `signatures` of a contract as JSON (`o2o.contract.contract_of`).

    Returns:
        Their names, sorted into decode, prefills and buckets.

    Raises:
        KeyError: A signature has no inputs or outputs, or one of these no shape.
        TypeError: A shape is not a list of numbers.
    """
    pairs = []
    for name, entries in signatures.items():
        inputs = [
            (role, entry["shape"]) for entry in entries["inputs"] if (role := parse_role(entry)) is not None
        ]
        outputs = [role for entry in entries["outputs"] if (role := parse_role(entry)) is not None]
        pairs.append((name, SignatureFacts.of(name, inputs, outputs)))
    return classify(pairs)


def find_decode(model: Model) -> Signature | None:
    """Return the decode signature, or None.

    Args:
        model: A model with roles attached to its values.

    Returns:
        Decode by the rule of this module; None when there is none.
    """
    return _classified(model).decode


def decode_of(model: Model) -> Signature:
    """Return the decode signature.

    Args:
        model: A model with roles attached to its values.

    Returns:
        Decode by the rule of this module.

    Raises:
        ModelError: No signature takes caches and reads one token, or several do and none is `decode`.
    """
    if (decode := find_decode(model)) is not None:
        return decode
    names = ", ".join(repr(signature.name) for signature in model.signatures) or "none"
    raise ModelError(
        f"no decode signature: exactly one of {names} must read one token and take caches with a role in "
        f"the o2o.contract"
    )


def prefills_of(model: Model) -> list[Signature]:
    """Return the prefill signatures.

    Args:
        model: A model with roles attached to its values.

    Returns:
        Prefills by the rule of this module, sorted by T.
    """
    return _classified(model).prefills


def buckets_of(model: Model) -> list[Signature]:
    """Return the buckets: decode signatures of smaller capacities.

    Args:
        model: A model with roles attached to its values.

    Returns:
        Buckets by the rule of this module, sorted by capacity.
    """
    return _classified(model).buckets


def capacity_of(signature: Signature) -> int:
    """Return the capacity S of a signature's KV caches.

    Args:
        signature: A signature with roles attached to its values.

    Returns:
        The number of positions that the cache inputs serve; 0 without caches, or without a known layout.
    """
    return _facts_of(signature).capacity


def _classified(model: Model) -> Classified[Signature]:
    return classify([(signature, _facts_of(signature)) for signature in model.signatures])


def _facts_of(signature: Signature) -> SignatureFacts:
    from o2o.model import dims_of  # which imports onnx_ir

    inputs = [(role, dims_of(v) or ()) for v in signature.inputs.values() if (role := role_of(v)) is not None]
    outputs = [role for v in signature.outputs.values() if (role := role_of(v)) is not None]
    return SignatureFacts.of(signature.name, inputs, outputs)
