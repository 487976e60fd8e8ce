"""Weights that an ONNX model lacks, found in a checkpoint by names.

    external data of a file that does not exist        -> model.layers.0.mlp.up_proj.weight, transposed
    initializers without data, parameters as inputs

Names are those of the constant, or of the module in the name or metadata of the node that takes it:
`/model/layers.0/mlp/up_proj/MatMul`. Prefixes may differ. The shape shows whether the matrix is transposed.
For a square matrix, other matrices that the same operator takes show it.
"""

from __future__ import annotations

import ast
import contextlib
import os
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path

import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.onnx_writer import EXTERNAL
from o2o.formats.tensors import SourceTensor
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import Model, dims_of
from o2o.streams import ExternalFile
from o2o.weights.checkpoint import open_checkpoint
from o2o.weights.weight_source import WeightSource

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
HEADS = ("lm_head.weight", "embed_out.weight")
_SCOPES = "pkg.torch.onnx.name_scopes"
"""The metadata of a node, by torch.onnx, that lists modules."""
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def refer_to_checkpoint(model: Model, checkpoint: str | os.PathLike[str] | None) -> list[str]:
    """Replace weights without data by references to a checkpoint.

    Args:
        model: An ONNX model, changed in place.
        checkpoint: A folder; None if there is none.

    Returns:
        The names of inputs that became constants.

    Raises:
        ModelError: There are such weights and no checkpoint, or a square matrix may be transposed or not.
        OSError: A file of the checkpoint cannot be read.
    """
    missing = [value for graph in model.graphs for value in graph.initializers.values() if _lacks_data(value)]
    if checkpoint is None:
        if missing:
            raise ModelError(f"the data of {missing[0].name} is not there: --checkpoint DIR gives it")
        return []
    tensors = open_checkpoint(checkpoint).tensors
    parameters = [value for graph in model.graphs for value in graph.inputs if _is_parameter(value, tensors)]
    stored = {value: _stored(value, tensors) for value in (*missing, *parameters)}
    transposed = _transposed(stored)
    for value, tensor in stored.items():
        _refer(value, tensor, Path(checkpoint), transposed.get(value, False))
    for value in parameters:
        _make_constant(model, value)
    _note_inline(model, tensors, Path(checkpoint))
    if missing:
        model.fields[EXTERNAL] = True
    return list(dict.fromkeys(value.name or "" for value in parameters))


def _lacks_data(value: ir.Value) -> bool:
    """Whether the file of an initializer's data does not exist, or it has no data."""
    tensor = value.const_value
    if isinstance(tensor, SourceTensor) and isinstance(tensor.source, ExternalFile):
        return not tensor.source.path.exists()
    if isinstance(tensor, ir.serde.TensorProtoTensor) and tensor.nbytes:
        fields = {field.name for field, _ in tensor.raw.ListFields()}
        return fields.isdisjoint({"raw_data", "string_data"}) and not any(
            name.endswith("_data") for name in fields
        )
    return False


def _is_parameter(value: ir.Value, tensors: Mapping[str, WeightSource]) -> bool:
    """Whether an input is a weight of the checkpoint, as torch.onnx writes with `export_params=False`."""
    dims = dims_of(value)
    if value.const_value is not None or value.dtype not in _FLOATS or "role" in value.meta or not dims:
        return False
    return _stored(value, tensors) is not None


def _fits(dims: tuple[int | str, ...], tensor: WeightSource) -> bool:
    shape = tuple(dim for dim in dims if dim != 1)
    stored = tuple(dim for dim in tensor.shape if dim != 1)
    return shape in (stored, stored[::-1])


def _stored(
    value: ir.Value, tensors: Mapping[str, WeightSource], is_derived: bool = False
) -> WeightSource | None:
    """The tensor of the checkpoint that a value stands for; None if no name leads to one.

    is_derived: Also a tensor that the value may be computed from, such as the weight of a norm plus 1.
    """
    for candidate in _candidates(value, is_derived):
        name = _by_name(candidate, tensors)
        if name is None and candidate.endswith(HEADS):  # a checkpoint stores tied weights once
            tied = [each for each in tensors if each.endswith(EMBEDDINGS)]
            name = tied[0] if len(tied) == 1 else None
        if name is not None and _fits(dims_of(value) or (), tensors[name]):
            return tensors[name]
    return None


def _candidates(value: ir.Value, is_derived: bool) -> Iterator[str]:
    """Names that the tensor may have: that of the value, and those of modules of nodes that take it."""
    yield value.name or ""
    for node, operand in value.uses():
        if node.op_type in ("Transpose", "Cast", "Identity"):
            for user, of_user in node.outputs[0].uses():
                yield from _names_of_module(user, of_user, is_derived)
        else:
            yield from _names_of_module(node, operand, is_derived)


def _names_of_module(node: ir.Node, operand: int, is_derived: bool) -> Iterator[str]:
    """Names by the module of a product, whose weight or bias is an operand."""
    if not is_derived and (node.op_type, operand) not in (("MatMul", 1), ("Gemm", 1), ("Gemm", 2)):
        return
    kind = "bias" if operand == 2 else "weight"
    module = ".".join(part for part in (node.name or "").split("/")[:-1] if part)
    scopes = node.metadata_props.get(_SCOPES)
    modules = [module] if module else []
    if scopes is not None:
        with contextlib.suppress(ValueError, SyntaxError):  # written by another tool
            modules += [str(scope) for scope in ast.literal_eval(scopes)[:-1]][-1:]
    for each in modules:
        yield f"{each}.{kind}"


def _by_name(name: str, tensors: Mapping[str, WeightSource]) -> str | None:
    """The name in the checkpoint, which may lack the first modules, or have others before them."""
    parts = name.split(".")
    for start in range(len(parts) - 1):
        if (rest := ".".join(parts[start:])) in tensors:
            return rest
    longer = [each for each in tensors if each.endswith(f".{name}")]
    return longer[0] if len(longer) == 1 and len(parts) > 1 else None


def _transposed(stored: Mapping[ir.Value, WeightSource | None]) -> dict[ir.Value, bool]:
    """Whether each matrix is the transposed one. Square ones follow others that the same operator takes."""
    result: dict[ir.Value, bool] = {}
    seen: dict[Hashable, set[bool]] = defaultdict(set)
    square = []
    for value, tensor in stored.items():
        dims = tuple(dims_of(value) or ())
        if tensor is None or len(dims) != 2 or len(tensor.shape) != 2:
            continue
        if dims[0] == dims[1]:
            square.append(value)
            continue
        result[value] = dims != tensor.shape
        seen[_use(value)].add(result[value])
    for value in square:
        known = seen[_use(value)]
        if len(known) != 1:
            square_one = f"{value.name} {list(dims_of(value) or ())} is square"
            raise ModelError(
                f"{square_one}, and no other matrix shows whether it is transposed: export it with weights"
            )
        (result[value],) = known
    return result


def _use(value: ir.Value) -> Hashable:
    """How an operator takes a matrix. Equal uses take it in one orientation."""
    node, operand = next(iter(value.uses()), (None, 0))
    if node is None:
        return None
    trans = node.attributes.get("transB")
    return node.domain, node.op_type, operand, trans.as_int() if trans is not None else 0


def _refer(value: ir.Value, tensor: WeightSource | None, folder: Path, transposed: bool) -> None:
    shape = tuple(int(dim) for dim in dims_of(value) or ())
    assert value.dtype is not None
    name = value.name or ""
    if tensor is None:
        value.const_value = UnboundTensor(name, folder, name, value.dtype, shape)
        return
    value.const_value = UnboundTensor(
        name, folder, tensor.name, value.dtype, tensor.shape, shape, transposed=transposed
    )


def _make_constant(model: Model, value: ir.Value) -> None:
    """Make an input a constant of its graph."""
    graph = value.graph
    assert isinstance(graph, ir.Graph)
    graph.inputs.remove(value)
    graph.register_initializer(value)
    for signature in model.signatures_of(graph):
        signature.inputs = {name: each for name, each in signature.inputs.items() if each is not value}


def _note_inline(model: Model, tensors: Mapping[str, WeightSource], folder: Path) -> None:
    """Note the tensors of the checkpoint that the model holds with their data: they are in use."""
    unused = model.unused.setdefault(str(folder), {})
    for graph in model.all_graphs():
        for value in graph.initializers.values():
            if not isinstance(value.const_value, UnboundTensor):
                tensor = _stored(value, tensors, is_derived=True)
                if tensor is not None:
                    unused[tensor.name] = ""
