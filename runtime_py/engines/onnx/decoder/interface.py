"""The inputs and outputs of a decoder's graph, by role.

Names and shapes are those of ONNX Runtime's session. Roles come from the contract, from names, and from the
data flow (`o2o.roles`). A cache is any input that an output returns: the role of most, keys or values of a
layer, is not needed to run them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from o2o import formats
from o2o.cli.text import listed
from o2o.contract import Role
from o2o.errors import ModelError
from o2o.model import Model, dims_of
from o2o.roles import find_roles
from o2o.roles.names import role_by_name
from o2o.roles.onnx_caches import CachePair, cache_pairs
from o2o.roles.onnx_inputs import position_limit

_ROUNDING = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "QuantizeLinear", "MatMulNBits")
Dims = tuple[int | str | None, ...]
_PAST = re.compile(r"past|present|cache|state|new|updated|key_values|input|output|in|out")


@dataclass(frozen=True)
class Tensor:
    """An input or output of a graph.

    Attributes:
        name: Its name.
        dtype: Its dtype in ONNX.
        dims: Its dimensions; a name for a symbolic one, None for an unknown one.
    """

    name: str
    dtype: ir.DataType
    dims: Dims


@dataclass(frozen=True)
class Cache:
    """A tensor that a run takes and returns.

    Attributes:
        past: The input; None for a graph for the beginning of a text, which takes none.
        present: The output.
        role: Which cache it is, if known.
        in_place: Whether both may be one buffer.
        is_cut: Whether the graph drops rows, as that of a sliding window does.
    """

    past: Tensor | None
    present: Tensor
    role: Role | None
    in_place: bool
    is_cut: bool


@dataclass(frozen=True)
class Interface:
    """The inputs and outputs of a decoder's graph.

    Attributes:
        tokens: The token ids.
        inputs: The other inputs that are no caches, and the kind of each.
        caches: The caches.
        logits: The logits.
        is_rounded: Whether activations are rounded, so that logits depend on how a text is split into runs.
        positions: How many positions the graph has tables for; None if it has none.
        lengths: The numbers of tokens that a run may have, where they are fixed; None for any.
    """

    tokens: Tensor
    inputs: tuple[tuple[Tensor, str], ...]
    caches: tuple[Cache, ...]
    logits: Tensor
    is_rounded: bool
    positions: int | None
    lengths: tuple[int, ...] | None

    @property
    def batch(self) -> str | None:
        """The name of the dimension of texts, if it has one."""
        first = self.tokens.dims[0] if self.tokens.dims else None
        return first if isinstance(first, str) else None


def read_interface(path: Path, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Interface:
    """Find the role of each input and output of a decoder.

    Args:
        path: The ONNX file.
        inputs: The inputs that must be fed.
        outputs: The outputs.

    Returns:
        The interface.

    Raises:
        ModelError: It is no decoder of text: an input is of another kind, or tokens or logits are missing.
        OSError: The file cannot be read.
    """
    model = formats.load(path)
    roles = _roles(model)
    by_kind = {role.kind: name for name, role in roles.items()}
    if "logits" not in by_kind or "tokens" not in by_kind:
        lacking = "token ids" if "tokens" not in by_kind else "logits"
        role = "tokens" if "tokens" not in by_kind else "logits"
        names = listed([tensor.name for tensor in (inputs if role == "tokens" else outputs)])
        raise ModelError(
            f"nothing shows which of {names} is the {lacking}: name it with sign.contract.py "
            f"--role NAME={role}"
        )
    caches = tuple(_caches(model, roles, inputs, outputs))
    past = {cache.past for cache in caches}
    others = []
    for tensor in inputs:
        known = roles.get(tensor.name) or role_by_name(tensor.name, is_input=True)
        kind = known.kind if known is not None else None
        if tensor in past or kind == "tokens":
            continue
        if kind is None or (known is not None and known.is_cache):
            raise ModelError(_unknown(tensor, known))
        others.append((tensor, kind))
    (tokens,) = (tensor for tensor in inputs if tensor.name == by_kind["tokens"])
    (logits,) = (tensor for tensor in outputs if tensor.name == by_kind["logits"])
    rounds = any(node.op_type in _ROUNDING for graph in model.graphs for node in graph.all_nodes())
    is_rounded = rounds or logits.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE)
    ids = [one.inputs[tokens.name] for one in model.signatures if tokens.name in one.inputs]
    limits = (position_limit(one.graph, one.inputs[tokens.name]) for one in model.signatures)
    positions = min((limit for limit in limits if limit is not None), default=None)
    lengths = {(dims_of(value) or ("",))[-1] for value in ids}
    fixed = tuple(sorted(length for length in lengths if isinstance(length, int)))
    return Interface(
        tokens,
        tuple(others),
        caches,
        logits,
        is_rounded,
        positions,
        fixed if len(fixed) == len(lengths) else None,
    )


def _roles(model: Model) -> dict[str, Role]:
    """The roles by name, of all signatures that read tokens. Others are dropped from the model."""
    if not model.signatures:
        model.add_default_signature("decode")
    roles: dict[str, Role] = {}
    for findings in find_roles(model):
        signature = findings.signature
        names = (*signature.inputs.items(), *signature.outputs.items())
        own = {name: findings.roles[value] for name, value in names if value in findings.roles}
        if any(role.kind == "tokens" for role in own.values()):
            roles = own | roles
        else:
            model.signatures.remove(signature)
    return roles


def _unknown(tensor: Tensor, role: Role | None) -> str:
    shape = "[" + ", ".join("?" if dim is None else str(dim) for dim in tensor.dims) + "]"
    if role is not None and role.is_cache:
        return (
            f"no output returns the cache {tensor.name!r} {shape}: name it with sign.contract.py "
            f"--role NAME={role.output_role.kind}:{role.layer or 0}"
        )
    return (
        f"it needs the input {tensor.name!r} {shape}, which this runtime does not compute: export a decoder "
        "that reads token ids, or name its role with sign.contract.py --role"
    )


def _caches(
    model: Model, roles: Mapping[str, Role], inputs: Sequence[Tensor], outputs: Sequence[Tensor]
) -> Iterator[Cache]:
    """Pair the inputs with outputs: by role, by data flow, then by name."""
    flow: dict[str | None, CachePair] = {}
    for graph in dict.fromkeys(signature.graph for signature in model.signatures):
        for pair in cache_pairs(graph):
            other = flow.setdefault(pair.past.name, pair)
            in_place, is_cut = pair.in_place and other.in_place, pair.is_cut or other.is_cut
            flow[pair.past.name] = pair._replace(in_place=in_place, is_cut=is_cut)
    by_slot = {role.slot: name for name, role in roles.items() if role.is_rows}
    named = {tensor.name: tensor for tensor in outputs}
    free = {name: tensor for name, tensor in named.items() if name not in roles or roles[name].is_rows}
    for past in inputs:
        role = roles.get(past.name)
        if role is not None and not role.is_cache:
            continue
        known = flow.get(past.name)
        name = by_slot.get(role.slot) if role is not None else None
        if name is None and known is not None:
            name = known.present.name
        if name is None:
            same = [one for one in free if _stem(one) == _stem(past.name) and one != past.name]
            name = same[0] if len(same) == 1 else None
        present = free.pop(name, None) if name is not None else None
        if present is None:
            continue
        if known is not None and known.present.name == name:
            yield Cache(past, present, role, known.in_place, known.is_cut)
        else:
            yield Cache(past, present, role, in_place=False, is_cut=True)
    taken = [role for role in roles.values() if role.is_cache]
    if not taken and not flow:
        for name, tensor in free.items():
            if name in roles:
                yield Cache(None, tensor, roles[name], False, False)


def _stem(name: str) -> tuple[str, ...]:
    """What the names of a cache have in common, such as `past.0.key` and `present.0.key`."""
    words = re.findall(r"[a-z]+|\d+", name.lower())
    return tuple(word for word in words if not _PAST.fullmatch(word))


def tensors_of(values: Sequence[Any]) -> list[Tensor]:
    """Describe inputs or outputs of an ONNX Runtime session.

    Args:
        values: Its `NodeArg`s.

    Returns:
        The tensors, without those that are no tensors.
    """
    result = []
    for value in values:
        match = re.fullmatch(r"tensor\((\w+)\)", value.type)
        if match is not None and match[1] in _DTYPES:
            result.append(Tensor(value.name, _DTYPES[match[1]], tuple(value.shape)))
    return result


_DTYPES = {
    "float": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "double": ir.DataType.DOUBLE,
    "int64": ir.DataType.INT64,
    "int32": ir.DataType.INT32,
    "int16": ir.DataType.INT16,
    "int8": ir.DataType.INT8,
    "uint8": ir.DataType.UINT8,
    "bool": ir.DataType.BOOL,
}
"""By name of the element type in ONNX Runtime."""
