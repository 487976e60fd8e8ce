"""Shapes of operators that ONNX Runtime adds to ONNX, for `onnx.shape_inference`, which does not know them.

Without them nothing behind such an operator has a shape. Only the first dimensions that an operand has are
given; lengths of caches are left open.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import onnx
from onnx import defs

DOMAIN = "com.microsoft"

Context = Any
"""An `onnx.shape_inference.InferenceContext`."""
Inference = Callable[[Context], None]


@contextlib.contextmanager
def ort_shapes() -> Iterator[None]:
    """Let `onnx.shape_inference` know these operators meanwhile.

    Yields:
        Nothing.
    """
    schemas = [_schema(domain, name, inference) for (domain, name), inference in _INFERENCES.items()]
    added = [
        schema
        for schema in schemas
        if not defs.has(schema.name, max_inclusive_version=schema.since_version, domain=schema.domain)
    ]
    for schema in added:
        defs.register_schema(schema)
    try:
        yield
    finally:
        for schema in added:
            defs.deregister_schema(schema.name, schema.since_version, schema.domain)


def _schema(domain: str, name: str, inference: Inference) -> defs.OpSchema:
    parameter, option = defs.OpSchema.FormalParameter, defs.OpSchema.FormalParameterOption.Variadic

    def any_number(label: str) -> list[defs.OpSchema.FormalParameter]:
        return [parameter(label, "T", param_option=option, is_homogeneous=False, min_arity=0)]

    types = [("T", [f"tensor({kind})" for kind in _TYPES], "")]
    schema = defs.OpSchema(
        name, domain, 1, inputs=any_number("x"), outputs=any_number("y"), type_constraints=types
    )

    def guarded(context: Context) -> None:
        with contextlib.suppress(IndexError, KeyError, ZeroDivisionError):
            inference(context)

    schema.set_type_and_shape_inference_function(guarded)
    return schema


_TYPES = (
    "float",
    "float16",
    "bfloat16",
    "double",
    "int4",
    "uint4",
    "int8",
    "uint8",
    "int32",
    "int64",
    "bool",
)


def _dims(context: Context, index: int) -> list[Any]:
    """The dimensions of an operand. Raises IndexError if it is absent or its rank is unknown."""
    kind = context.get_input_type(index) if index < context.get_num_inputs() else None
    if kind is None or not kind.tensor_type.HasField("shape"):
        raise IndexError
    return list(kind.tensor_type.shape.dim)


def _has(context: Context, index: int) -> bool:
    return index < context.get_num_inputs() and context.get_input_type(index) is not None


def _set(context: Context, index: int, dims: list[Any], like: int = 0) -> None:
    """Set the shape of a result, whose elements have the type of operand `like`. None: any dimension."""
    if index >= context.get_num_outputs():
        return
    result = onnx.TypeProto()
    result.tensor_type.elem_type = context.get_input_type(like).tensor_type.elem_type
    result.tensor_type.shape.SetInParent()
    for dim in dims:
        added = result.tensor_type.shape.dim.add()
        if isinstance(dim, int):
            added.dim_value = dim
        elif dim is not None:
            added.CopyFrom(dim)
    context.set_output_type(index, result)


def _number(context: Context, name: str) -> int:
    """An integer attribute; 0 if it is absent."""
    item = context.get_attribute(name)
    return int(item.i) if item is not None else 0


def _size(dim: Any) -> int:
    """A dimension as a number. Raises KeyError for another."""
    if not dim.HasField("dim_value"):
        raise KeyError
    return int(dim.dim_value)


def _elementwise(context: Context) -> None:
    _set(context, 0, _dims(context, 0))


def _with_sum(context: Context) -> None:
    _set(context, 0, _dims(context, 0))
    _set(context, 3, _dims(context, 0))


def _embedding(context: Context) -> None:
    batch, tokens = _dims(context, 0)
    width = _dims(context, 2)[1]
    _set(context, 0, [batch, tokens, width], 2)
    _set(context, 1, [batch], 0)
    _set(context, 2, [batch, tokens, width], 2)


def _matmul_nbits(context: Context) -> None:
    _set(context, 0, [*_dims(context, 0)[:-1], _number(context, "N")])


def _by_matrix(context: Context) -> None:
    matrix = _dims(context, 1)
    if len(matrix) == 2:
        column = 0 if _number(context, "transB") else 1
        like = 0 if context.get_input_type(0).tensor_type.elem_type in _FLOATS else 2
        _set(context, 0, [*_dims(context, 0)[:-1], matrix[column]], like)


def _fused_matmul(context: Context) -> None:
    """MatMul of transposed operands. With operands of other ranks, only a matrix on the right is known."""
    first, second = _dims(context, 0), _dims(context, 1)
    if _number(context, "transBatchA") or _number(context, "transBatchB"):
        return
    if len(first) != len(second):
        if not _number(context, "transA"):
            _by_matrix(context)
        return
    row, column = first[-2 + bool(_number(context, "transA"))], second[-1 - bool(_number(context, "transB"))]
    pairs = zip(first[:-2], second[:-2], strict=True)
    batches = [b if a.HasField("dim_value") and a.dim_value == 1 else a for a, b in pairs]
    _set(context, 0, [*batches, row, column])


_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


def _gemm(context: Context) -> None:
    rows, columns = _dims(context, 0), _dims(context, 1)
    transposed = [_number(context, name) for name in ("transA", "transB")]
    _set(context, 0, [rows[transposed[0]], columns[1 - transposed[1]]])


def _gather(context: Context) -> None:
    *rows, columns = _dims(context, 0)[1:]
    is_packed = context.get_input_type(0).tensor_type.elem_type == onnx.TensorProto.UINT8
    factor = 8 // (_number(context, "bits") or 4) if is_packed else 1
    _set(context, 0, [*_dims(context, 1), *rows, _size(columns) * factor], 2)


def _grouped(context: Context) -> None:
    batch, tokens, width = _dims(context, 0)
    heads, groups = _number(context, "num_heads"), _number(context, "kv_num_heads")
    head = _size(width) // (heads if _has(context, 1) else heads + 2 * groups)
    _set(context, 0, [batch, tokens, head * heads])
    for output in (1, 2):
        _set(context, output, [batch, groups, None, head])


def _multi_head(context: Context) -> None:
    batch, tokens, *_ = query = _dims(context, 0)
    heads = _number(context, "num_heads")
    if len(query) == 5:
        width = heads * _size(query[4])
    elif len(key := _dims(context, 1)) == 5:
        width = heads * _size(key[4])
    else:
        value = _dims(context, 2)
        width = _size(value[2]) if len(value) == 3 else heads * _size(value[3])
    _set(context, 0, [batch, tokens, width])
    key_width = width if len(query) == 5 else _size(query[2])
    for output, size in ((1, key_width), (2, width)):
        _set(context, output, [batch, heads, None, size // heads])


def _fused_attention(context: Context) -> None:
    batch, tokens, _ = _dims(context, 0)
    heads, total = _number(context, "num_heads"), _size(_dims(context, 1)[1])
    sizes = context.get_attribute("qkv_hidden_sizes")
    width = int(sizes.ints[2]) if sizes is not None else total // 3
    _set(context, 0, [batch, tokens, width])
    _set(context, 1, [2, batch, heads, None, width // heads])


_INFERENCES: dict[tuple[str, str], Inference] = {
    ("", "SimplifiedLayerNormalization"): _elementwise,
    ("", "LayerNormalization"): _elementwise,  # ONNX Runtime has it before opset 17, too
    **{
        (DOMAIN, name): _elementwise
        for name in (
            *("Gelu", "BiasGelu", "FastGelu", "QuickGelu"),
            *("RotaryEmbedding", "SimplifiedLayerNormalization"),
        )
    },
    (DOMAIN, "SkipLayerNormalization"): _with_sum,
    (DOMAIN, "SkipSimplifiedLayerNormalization"): _with_sum,
    (DOMAIN, "EmbedLayerNormalization"): _embedding,
    (DOMAIN, "MatMulNBits"): _matmul_nbits,
    (DOMAIN, "FusedGemm"): _gemm,
    (DOMAIN, "FusedMatMul"): _fused_matmul,
    (DOMAIN, "DynamicQuantizeMatMul"): _by_matrix,
    (DOMAIN, "MatMulIntegerToFloat"): _by_matrix,
    (DOMAIN, "GatherBlockQuantized"): _gather,
    (DOMAIN, "GroupQueryAttention"): _grouped,
    (DOMAIN, "MultiHeadAttention"): _multi_head,
    (DOMAIN, "Attention"): _fused_attention,
}
