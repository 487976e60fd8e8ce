"""The weights of a GGUF file, by the names and in the layout of transformers' model.

Names come from transformers' `get_gguf_hf_weights_map`. Layouts come from its `TENSOR_PROCESSORS`: each is
called with row numbers in place of weights. Its result says how rows are moved, shifted or transposed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    BloomTensorProcessor,
    Gemma2TensorProcessor,
    GGUFTensor,
    LlamaTensorProcessor,
    TensorProcessor,
    get_gguf_hf_weights_map,
)

from export.gguf_config import ROTARY_TENSORS
from o2o.cli.text import listed
from o2o.errors import ModelError
from o2o.weights.derived_checkpoint import rows_of
from o2o.weights.derived_tensor import Concatenated, Expression, Leaf, Rows, Shifted, Transposed
from o2o.weights.gguf_file import GgufFile


class _FalconProcessor(TensorProcessor):
    """llama.cpp stores queries, keys and values apart; transformers interleaves them by groups of heads."""

    def process(self, weights: np.ndarray, name: str, **kwargs: Any) -> GGUFTensor:
        groups = self.config["num_kv_heads"]
        if "attn_qkv" not in name or groups == 1:
            return GGUFTensor(weights, name, {})
        heads = self.config["num_attention_heads"]
        size = len(weights) // (heads + 2 * groups)
        q, k, v = np.split(weights, [heads * size, (heads + groups) * size])
        parts = [part.reshape(groups, -1, size, *weights.shape[1:]) for part in (q, k, v)]
        return GGUFTensor(np.concatenate(parts, axis=1).reshape(weights.shape), name, {})


PROCESSORS: dict[str, type[TensorProcessor]] = {
    **TENSOR_PROCESSORS,
    "arcee": LlamaTensorProcessor,
    "falcon": _FalconProcessor,
    "gemma": Gemma2TensorProcessor,
    "gptneox": BloomTensorProcessor,
    "granite": LlamaTensorProcessor,
    "mistral": LlamaTensorProcessor,
    "olmo": LlamaTensorProcessor,
    "smollm3": LlamaTensorProcessor,
}
"""transformers' processors, and those of architectures that its reader does not have."""

PARTS = {"attn_q": "attn_qkv", "attn_k": "attn_qkv", "attn_v": "attn_qkv"}
"""{GGUF name of a part: the fused tensor that may hold it, in this order}."""
JOINED = {"attn_qkv": ("attn_q", "attn_k", "attn_v"), "ffn_up": ("ffn_gate", "ffn_up")}
"""{GGUF name of a fused tensor: the parts that a file may have in its place}."""


def weights_of(
    file: GgufFile, model: Any, fields: Mapping[str, Any]
) -> tuple[dict[str, Expression], list[str]]:
    """Express each parameter of a model by tensors of a GGUF file.

    Args:
        file: The file.
        model: transformers' model, on the meta device.
        fields: Its configuration, from `export.gguf_config.config_of`.

    Returns:
        {parameter: expression}, and the names of tensors that the model does not use.

    Raises:
        ModelError: A parameter has no tensor, or one of another shape.
    """
    heads = fields.get("num_attention_heads") or fields.get("n_head")
    config = {"num_attention_heads": heads, "num_key_value_heads": heads, "n_head": heads, **fields}
    processor = PROCESSORS.get(file.architecture, TensorProcessor)(config=config)
    architecture = "llama" if file.architecture == "mistral" else file.architecture
    names = get_gguf_hf_weights_map(model, processor, model_type=architecture)
    stored = {parameter: name for name, parameter in names.items()}
    weights: dict[str, Expression] = {}
    used: set[str] = set()
    missing: list[str] = []
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    for parameter, tensor in model.state_dict().items():
        name = stored.get(parameter, "")
        expression = _expression(file, name, parameter, model, processor, used)
        if expression is None:
            if parameter not in tied:
                missing.append(f"{parameter} ({name or 'no name in GGUF'})")
            continue
        if expression.shape != tuple(tensor.shape):
            raise ModelError(
                f"{file.path} has {name} as {list(expression.shape)}, not as {list(tensor.shape)}, which its "
                "metadata says"
            )
        weights[parameter] = expression
    if missing:
        raise ModelError(f"{file.path} lacks {listed(missing, 3)}, which its architecture has")
    return weights, [name for name in file.tensors if name not in used and name not in ROTARY_TENSORS]


def _expression(
    file: GgufFile, name: str, parameter: str, model: Any, processor: TensorProcessor, used: set[str]
) -> Expression | None:
    """The parameter that GGUF calls `name`, in transformers' layout; None if the file does not have it."""
    if name in file.tensors:
        used.add(name)
        return _in_layout(Leaf(file.tensors[name]), name, processor)
    head, _, kind = name.rpartition(".")
    block, _, part = head.rpartition(".")
    fused = f"{block}.{PARTS.get(part, '')}.{kind}"
    if fused in file.tensors:
        used.add(fused)
        sizes = _part_sizes(parameter, model)
        place = list(PARTS).index(part)
        start = sum(sizes[:place])
        return Rows(Leaf(file.tensors[fused]), ((start, start + sizes[place], 1),))
    parts = [f"{block}.{one}.{kind}" for one in JOINED.get(part, ())]
    if parts and all(one in file.tensors for one in parts):
        used.update(parts)
        return Concatenated(tuple(_in_layout(Leaf(file.tensors[one]), one, processor) for one in parts))
    return None


def _part_sizes(parameter: str, model: Any) -> list[int]:
    """The rows of the query, key and value projections of a layer."""
    shapes = model.state_dict()
    for projection in ("q_proj", "k_proj", "v_proj"):
        if projection in parameter:
            names = [parameter.replace(projection, one) for one in ("q_proj", "k_proj", "v_proj")]
            return [int(shapes[one].shape[0]) for one in names]
    raise ModelError(f"the layout of {parameter} in GGUF is not known")


def _in_layout(tensor: Leaf, name: str, processor: TensorProcessor) -> Expression:
    """A tensor as the processor returns it, found by what it does with row numbers."""
    if name == "output.weight":
        return tensor  # never moved
    shape = tensor.shape
    rows = np.arange(shape[0], dtype=np.int32)
    numbers = np.broadcast_to(rows.reshape(-1, *(1 for _ in shape[1:])), shape)
    with np.errstate(all="ignore"):
        result = np.asarray(processor.process(weights=numbers, name=name, tensor_key_mapping={}).weights)
    if result is numbers:
        return tensor
    if len(shape) == 2 and result.shape == shape[::-1] and np.array_equal(result[0], rows):
        return Transposed(tensor)
    if result.shape == shape:
        column = result.reshape(shape[0], -1)[:, 0]
        shift = round((float(column.sum(dtype=np.float64)) - float(rows.sum(dtype=np.float64))) / shape[0])
        order = column - shift
        if np.array_equal(np.sort(order), rows):
            moved = tensor if np.array_equal(order, rows) else Rows(tensor, rows_of(order))
            return Shifted(moved, float(shift)) if shift else moved
    raise ModelError(f"{tensor.source.path}: the layout of {name} in GGUF is not known")
