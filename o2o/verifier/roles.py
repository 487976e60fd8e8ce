"""The contract: roles of inputs and outputs against their dtypes, ranks and dimensions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from o2o.contract import INPUTS, NUMBERS, Role, role_of
from o2o.model import Model, Signature, dims_of, dtype_name, shape_of
from o2o.operators.attention import is_attention
from o2o.operators.core_attention import is_core_attention
from o2o.roles.attention_blocks import attention_blocks
from o2o.verifier.issue import Issue

_LOGITS = ("float32", "float16", "bfloat16")
_INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)
Dimensions = dict[str, tuple[int | str, str]]
"""By name of a dimension: its size, and the tensor that has it."""


def verify_roles(model: Model) -> Iterator[Issue]:
    """Check the roles of each signature, and that signatures agree.

    Args:
        model: The model.

    Yields:
        Issues V201, V202, V203, V206, V207 and V208.
    """
    of_model: Dimensions = {}
    for signature in model.signatures:
        wrong = False
        for name, value, role, is_input in _roles(signature):
            if (message := _wrong(value, role, is_input)) is not None:
                wrong = True
                yield Issue("V201", f"{role.kind}: {message}", signature.name, tensor=name)
        if wrong:
            continue
        yield from _slots(signature)
        dimensions: Dimensions = {}
        yield from _caches(signature, dimensions)
        yield from _windows(signature)
        for name, value, role, _ in _roles(signature):
            if role.kind == "logits":
                dimensions["V"] = (dims_of(value) or ("?",))[-1], name
        for dimension, (size, name) in dimensions.items():
            if dimension in ("S", "R"):  # a bucket has a smaller capacity
                continue
            known, where = of_model.setdefault(dimension, (size, f"{name} of {signature.name}"))
            if known != size:
                message = f"{dimension} is {size}, and {known} in {where}"
                yield Issue("V206", message, signature.name, tensor=name)


def _roles(signature: Signature) -> Iterator[tuple[str, ir.Value, Role, bool]]:
    """The tensors with a role: public name, tensor, role, whether it is an input."""
    for values, is_input in ((signature.inputs, True), (signature.outputs, False)):
        for name, value in values.items():
            if (role := role_of(value)) is not None:
                yield name, value, role, is_input


def _wrong(value: ir.Value, role: Role, is_input: bool) -> str | None:
    """Why a role does not fit its tensor."""
    shape, dtype = dims_of(value) or (), dtype_name(value)
    if is_input != (role.kind in INPUTS or role.is_cache):
        return f"a role of {'outputs' if is_input else 'inputs'} on an {'input' if is_input else 'output'}"
    if role.kind in ("tokens", *NUMBERS) and value.dtype not in _INTEGERS:
        return f"{dtype}, not an integer"
    if role.kind == "tokens" and len(shape) != 2:
        return f"{list(shape)}, not [B, T]"
    if role.kind == "position" and len(shape) > 3:
        return f"{list(shape)}, not [1] or [T]"
    if role.kind == "use_cache" and value.dtype != ir.DataType.BOOL:
        return f"{dtype}, not bool"
    if role.kind == "logits" and (
        len(shape) not in (2, 3) or dtype not in ("float32", "float16", "bfloat16")
    ):
        return f"{dtype} {list(shape)}, not float32 [B, T, V]"
    if role.kind == "window_row" and shape != (1,):
        return f"{list(shape)}, not [1]"
    if role.is_cache or role.is_rows:
        if len(shape) != 4:
            return f"{list(shape)}, not 4 axes"
        if role.layout is not None and sorted(role.layout) != sorted("BNTH"):
            return f"the layout {role.layout}, not one of the axes B, N, T and H"
    return None


def _slots(signature: Signature) -> Iterator[Issue]:
    """Roles that occur twice, and keys without values."""
    seen: dict[tuple[str, int | None], str] = {}
    layers: dict[str, set[int]] = {}
    for name, _, role, _ in _roles(signature):
        key = role.kind, role.layer
        if key in seen and role.kind != "position":
            layer = "" if role.layer is None else f" of layer {role.layer}"
            yield Issue("V203", f"{role.kind}{layer} is {seen[key]} too", signature.name, tensor=name)
        seen[key] = name
        if role.layer is not None:
            layers.setdefault(role.kind, set()).add(role.layer)
        elif role.is_cache or role.is_rows:
            yield Issue("V203", f"{role.kind} without a layer", signature.name, tensor=name)
    for one, other in (("key_cache", "value_cache"), ("key", "value")):
        for number in sorted(layers.get(one, set()) ^ layers.get(other, set())):
            present, lacking = (one, other) if number in layers.get(one, set()) else (other, one)
            yield Issue("V207", f"layer {number} has a {present}, and no {lacking}", signature.name)
    used = layers.get("key_cache", set())
    for number in sorted(set(range(max(used, default=-1))) - used):
        message = f"there are caches of layer {max(used)}, and none of layer {number}"
        yield Issue("V207", message, signature.name)


def _caches(signature: Signature, dimensions: Dimensions) -> Iterator[Issue]:
    """Compare the dimensions of caches and rows. Layers may have other numbers of heads."""
    by_layer: dict[int | None, Dimensions] = {}
    for name, value, role, _ in _roles(signature):
        if not (role.is_cache or role.is_rows) or role.layout is None:
            continue
        sizes: Mapping[str, int | str] = dict(zip(role.layout, dims_of(value) or (), strict=True))
        of_layer = by_layer.setdefault(role.layer, {})
        for key, size in (
            ("B", sizes["B"]),
            ("K", sizes["N"]),
            (f"H of {'keys' if 'key' in role.kind else 'values'}", sizes["H"]),
            ("window", role.window or 0),
            ("chunk", role.chunk or 0),
        ):
            known, other = of_layer.setdefault(key, (size, name))
            dimensions.setdefault(f"{key} of layer {role.layer}", (size, name))
            if known != size:
                yield Issue("V202", f"{key} is {size}, and {known} in {other}", signature.name, tensor=name)
        if role.is_cache:
            capacity = role.capacity or sizes["T"]
            size, other = dimensions.setdefault("S", (capacity, name))
            if size != capacity:
                message = f"its capacity is {capacity}, and {size} in {other}"
                yield Issue("V202", message, signature.name, tensor=name)
            if role.capacity is not None and isinstance(sizes["T"], int):
                yield from _window_cache(signature, name, role, sizes["T"], dimensions)


def _window_cache(
    signature: Signature, name: str, role: Role, rows: int, dimensions: Dimensions
) -> Iterator[Issue]:
    """A window cache needs rows for a run, as many as other window caches, and the input of its row."""
    roles = [(of, value) for _, value, of, is_input in _roles(signature) if is_input]
    tokens = max((shape_of(value)[-1] for of, value in roles if of.kind == "tokens"), default=1)
    needed = (role.window or rows) - 1 + tokens
    if rows < needed:
        message = f"it has {rows} rows, and a run of {tokens} with a window of {role.window} needs {needed}"
        yield Issue("V202", message, signature.name, tensor=name)
    size, other = dimensions.setdefault("R", (rows, name))
    if size != rows:
        yield Issue("V202", f"it has {rows} rows, and {other} {size}", signature.name, tensor=name)
    if all(of.kind != "window_row" for of, _ in roles):
        message = "it is a window cache, and there is no input window_row"
        yield Issue("V202", message, signature.name, tensor=name)


def _windows(signature: Signature) -> Iterator[Issue]:
    """Compare windows with what attention computes. A mask operand may hide any keys, and is not computed."""
    graph = signature.graph
    if not any(is_attention(node) or is_core_attention(node) for node in graph):
        return
    names = {value: name for name, value in signature.inputs.items()}
    for block in attention_blocks(graph):
        for cache in block.key.inputs:
            role = role_of(cache)
            if block.window is None or role is None or role.layout is None or cache not in names:
                continue
            S = shape_of(cache)[role.layout.index("T")]
            seen, declared = min(block.window or S, S), min(S, role.window or S, role.chunk or S)
            if seen != declared:
                message = f"a query sees {seen} of {S} keys, and {declared} by the contract"
                yield Issue("V208", message, signature.name, tensor=names[cache])
