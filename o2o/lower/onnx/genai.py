"""Models and settings for onnxruntime-genai.

That runtime feeds a mask of all tokens instead of a position, and knows inputs by these names:

    tokens [1,T]        input_ids [1,sequence_length]
    position [1]   =>   attention_mask [1,total_sequence_length]
    past_key_0          past_key_values.0.key [1,K,past_sequence_length,H]
    present_key_0       present.0.key [1,K,total_sequence_length,H]
    logits              logits

It binds one buffer to a past and a present cache. `genai_config.json` beside the model says names and sizes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from o2o.contract import Role, role_of
from o2o.errors import ModelError, UsageError
from o2o.model import Model, attribute, dims_of, shape_of
from o2o.streams import open_output
from o2o.weights.checkpoint_files import CONFIGS, TOKENIZER

FILE_NAME = "genai_config.json"
COPIED = (CONFIGS[1], *TOKENIZER)
"""Files of a checkpoint that stand beside the model, as names or patterns."""
_TOKENS, _MASK = "input_ids", "attention_mask"
_PAST, _PRESENT = "past_key_values.{}.{}", "present.{}.{}"
_LENGTH, _TOTAL, _PAST_LENGTH = "sequence_length", "total_sequence_length", "past_sequence_length"
_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_SEARCH = ("temperature", "top_k", "top_p", "repetition_penalty", "no_repeat_ngram_size", "min_length")


def adapt_to_genai(model: Model) -> int:
    """Give a model the inputs and outputs that onnxruntime-genai expects.

    Args:
        model: What `lower_to_onnx` made with the form `ort`, as a model. It is changed in place.

    Returns:
        S, the largest number of tokens of a text.

    Raises:
        ModelError: Caches differ in their heads, or are window caches.
    """
    graph = model.graphs[0]
    by_kind = {role.kind: value for value in graph.inputs if (role := role_of(value)) is not None}
    if "window_row" in by_kind:
        raise ModelError("onnxruntime-genai knows no window caches: convert the model with --full-caches")
    capacity = _capacity(graph)
    tokens, position = by_kind["tokens"], by_kind["position"]
    mask = ir.Value(None, name=_MASK, shape=ir.Shape([1, _TOTAL]), type=ir.TensorType(ir.DataType.INT64))
    mask.meta["role"] = Role("mask")
    _compute_position(graph, tokens, position, mask)
    graph.inputs[[*graph.inputs].index(position)] = mask
    readers = [node.op_type for value, _ in _caches(graph) for node, _ in value.uses()]
    grows = all(op_type == "GroupQueryAttention" for op_type in readers)
    for value in (*graph.inputs, *graph.outputs):
        role = role_of(value)
        if role is not None and (role.is_cache or role.is_rows):
            letter = role.slot[0]
            value.name = (_PAST if role.is_cache else _PRESENT).format(role.layer, letter)
            if grows and value.shape is not None:
                rows = _PAST_LENGTH if role.is_cache else _TOTAL
                value.shape = ir.Shape([rows if axis == 2 else dim for axis, dim in enumerate(value.shape)])
    tokens.name = _TOKENS
    for value in _values(graph):
        if value.shape is not None and "T" in (dims_of(value) or ()):
            value.shape = ir.Shape([_LENGTH if str(dim) == "T" else dim for dim in value.shape])
    for signature in model.signatures:
        signature.inputs = {value.name or "": value for value in graph.inputs}
        signature.outputs = {value.name or "": value for value in graph.outputs}
    return capacity


def _capacity(graph: ir.Graph) -> int:
    """S. Raise ModelError unless all caches have the same heads: the runtime allocates them alike."""
    shapes = {shape_of(value) for value, _ in _caches(graph)}
    if len(shapes) > 1:
        one, other = sorted(map(list, shapes))[:2]
        raise ModelError(f"onnxruntime-genai wants caches of one shape, and layers have {one} and {other}")
    return shapes.pop()[2]


def _caches(graph: ir.Graph) -> list[tuple[ir.Value, Role]]:
    pairs = ((value, role_of(value)) for value in graph.inputs)
    return [(value, role) for value, role in pairs if role is not None and role.is_cache]


def _compute_position(graph: ir.Graph, tokens: ir.Value, position: ir.Value, mask: ir.Value) -> None:
    """Compute the position of the first token: the size of the mask minus the number of tokens."""

    def node(op_type: str, inputs: Sequence[ir.Value], dtype: ir.DataType, **options: Any) -> ir.Node:
        result = ir.node(op_type, inputs, options or None)
        result.outputs[0].name = f"position/{op_type.lower()}_{len(nodes)}"
        result.outputs[0].shape, result.outputs[0].type = ir.Shape([1]), ir.TensorType(dtype)
        nodes.append(result)
        return result

    nodes: list[ir.Node] = []
    total = node("Shape", [mask], ir.DataType.INT64, start=1).outputs[0]
    count = node("Shape", [tokens], ir.DataType.INT64, start=1).outputs[0]
    first = node("Sub", [total, count], ir.DataType.INT64).outputs[0]
    if position.dtype != ir.DataType.INT64:
        dtype = position.dtype or ir.DataType.INT64
        first = node("Cast", [first], dtype, to=int(dtype)).outputs[0]
    position.replace_all_uses_with(first)
    graph.insert_before(graph[0], nodes)


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *(value for node in graph for value in node.outputs)]


def genai_config(model: Model, capacity: int, checkpoint: Path, file_name: str) -> dict[str, Any]:
    """Make the content of `genai_config.json`.

    Args:
        model: What `adapt_to_genai` made.
        capacity: S, as it returned it.
        checkpoint: The folder of the checkpoint, with `config.json` and `generation_config.json`.
        file_name: The name of the model's file.

    Returns:
        An object for JSON.

    Raises:
        UsageError: The folder has no `config.json`, or it is damaged.
    """
    config = _read(checkpoint / CONFIGS[0], needed=True)
    config = {**config, **(config["text_config"] if isinstance(config.get("text_config"), dict) else {})}
    generation = {**config, **_read(checkpoint / CONFIGS[1])}
    graph = model.graphs[0]
    caches = _caches(graph)
    _, K, _, H = dims_of(caches[0][0]) or (1, 0, 0, 0)
    heads = [attribute(node, "num_heads") for node in graph if node.op_type == "GroupQueryAttention"]
    logits = next(v for v in graph.outputs if (role := role_of(v)) is not None and role.kind == "logits")
    ids = {name: generation[name] for name in _SPECIAL_IDS if generation.get(name) is not None}
    eos = ids.get("eos_token_id", ids.get("pad_token_id", 0))
    ids.setdefault("eos_token_id", eos)
    ids.setdefault("pad_token_id", eos[0] if isinstance(eos, list) else eos)
    search = {name: generation[name] for name in _SEARCH if generation.get(name) is not None}
    return {
        "model": {
            **ids,
            "context_length": capacity,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": file_name,
                "head_size": H,
                "hidden_size": config.get("hidden_size", config.get("n_embd", 0)),
                "inputs": {
                    "input_ids": _TOKENS,
                    "attention_mask": _MASK,
                    "past_key_names": _PAST.format("%d", "key"),
                    "past_value_names": _PAST.format("%d", "value"),
                },
                "outputs": {
                    "logits": logits.name,
                    "present_key_names": _PRESENT.format("%d", "key"),
                    "present_value_names": _PRESENT.format("%d", "value"),
                },
                "num_attention_heads": heads[0] if heads else config.get("num_attention_heads", K),
                "num_hidden_layers": 1 + max(role.layer or 0 for _, role in caches),
                "num_key_value_heads": K,
            },
            "type": "decoder",
            "vocab_size": (dims_of(logits) or (0,))[-1],
        },
        "search": {
            **search,
            "do_sample": bool(generation.get("do_sample", False)),
            "max_length": capacity,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
        },
    }


def _read(path: Path, needed: bool = False) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        if needed or not isinstance(error, OSError):
            raise UsageError(f"--genai: {path} cannot be read: give the folder of the checkpoint") from error
        return {}
    if not isinstance(content, Mapping):
        raise UsageError(f"--genai: {path} holds no JSON object: give the folder of the checkpoint")
    return dict(content)


def write_genai_files(config: Mapping[str, Any], checkpoint: Path, folder: Path) -> list[str]:
    """Write `genai_config.json`, and copy the files of the tokenizer. Each appears when it is complete.

    Args:
        config: What `genai_config` returned.
        checkpoint: The folder of the checkpoint.
        folder: The folder of the model.

    Returns:
        The names of the files, in order.

    Raises:
        OSError: A file cannot be read or written.
    """
    sources = [path for pattern in COPIED for path in sorted(checkpoint.glob(pattern))]
    contents = {path.relative_to(checkpoint): path.read_bytes() for path in sources}
    contents[Path(FILE_NAME)] = (json.dumps(config, indent=4) + "\n").encode()
    for name, content in contents.items():
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        with open_output(str(target)) as sink:
            sink.write(content)
    return sorted(map(str, contents))
