"""Tensors of two models made comparable: KV caches by slot, layouts, capacities, shapes, and differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from o2o.check.runner import Arrays, Io, IoTensor, Results, Slot

SMALLEST = 1e-3
"""What counts as the largest number of a tensor at least."""


def caches_after(
    io: Io, results: Results, feeds: Mapping[str, np.ndarray], tensors: Arrays, position: int
) -> dict[Slot, np.ndarray]:
    """Return the keys and values of each slot after a run: of the whole cache, where there is one.

    A model returns whole caches, or new rows. New rows are written into the cache that the model was fed, as
    are all rows up to these if the others are undefined.

    Args:
        io: The inputs and outputs of the model.
        results: What the run returned.
        feeds: The inputs of the run, by name.
        tensors: Other tensors of the run, by name.
        position: The position of the first token.

    Returns:
        By slot, [B, N, rows, H] in the dtype of the model.
    """
    fed = {}
    for name, tensor in io.inputs.items():
        if (
            tensor.slot is not None
            and tensor.role is not None
            and tensor.role.is_cache
            and tensor.role.layout
        ):
            fed[tensor.slot] = _by_head(feeds[name], tensor)
    tokens = max((t.shape[-1] for t in io.inputs.values() if t.kind == "tokens" and t.shape), default=1)
    window_rows = [int(feeds[n].flat[0]) for n, t in io.inputs.items() if t.kind == "window_row"]
    returned = {name: (tensor, results.outputs[name]) for name, tensor in io.outputs.items()}
    for name, rows_name in io.appended.items():
        if rows_name in tensors:
            returned[f"appended {name}"] = io.inputs[name], tensors[rows_name]
    caches: dict[Slot, np.ndarray] = {}
    for tensor, numbers in returned.values():
        if tensor.slot is None or tensor.role is None or not tensor.role.layout or tensor.slot in caches:
            continue
        rows = _by_head(numbers, tensor)
        whole = fed.get(tensor.slot)
        if whole is not None and rows.shape[2] < whole.shape[2] and rows.shape[2] == tokens:
            whole = whole.copy()
            row = window_rows[0] if window_rows and tensor.is_window_cache else position
            whole[:, :, row : row + tokens] = rows[:, :, : whole.shape[2] - row]
            rows = whole
        elif whole is not None and rows.shape == whole.shape and io.leaves_rows_undefined:
            defined = np.arange(rows.shape[2]).reshape(1, 1, -1, 1) < position + tokens
            rows = np.where(defined, rows, whole)
        caches[tensor.slot] = rows
    for name, numbers in results.updated.items():
        tensor = io.inputs[name]
        if tensor.slot is not None and tensor.role is not None and tensor.role.layout:
            caches[tensor.slot] = _by_head(numbers, tensor)
    return caches


def _by_head(numbers: np.ndarray, tensor: IoTensor) -> np.ndarray:
    """`numbers` as [B, N, rows, H]."""
    assert tensor.role is not None
    assert tensor.role.layout is not None
    return numbers.transpose([tensor.role.layout.index(axis) for axis in "BNTH"])


def shared_rows(old: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Cut two caches to the rows that both have.

    Args:
        old: [B, N, rows, H].
        new: [B, N, rows, H].

    Returns:
        Both, cut. None for `new` if they differ in more than the number of rows.
    """
    if old.ndim != new.ndim or old.shape[:2] != new.shape[:2] or old.shape[3:] != new.shape[3:]:
        return old, None
    rows = min(old.shape[2], new.shape[2])
    return old[:, :, :rows], new[:, :, :rows]


def adapted(
    numbers: np.ndarray, old: IoTensor, new: IoTensor, shape: Sequence[int] | None = None, first: int = 0
) -> np.ndarray | None:
    """Bring numbers of one tensor into the layout, capacity, shape and dtype of another.

    Args:
        numbers: The numbers of `old`.
        old: A tensor of one model. Positions of several tokens count up from the first.
        new: Its counterpart in the other model.
        shape: The shape in a run in which axes vary; None for that of `new`.
        first: The position in row 0 of `new`, if that is a window cache, and `old` is a full cache.

    Returns:
        The numbers for `new`; None if they do not fit.
    """
    if old.kind == "position" and new.kind in ("position", "window_row") and not new.dynamic:
        start = numbers.flat[0] - (first if new.kind == "window_row" else 0)
        return (start + np.arange(int(np.prod(new.shape)))).reshape(new.shape).astype(new.dtype)
    before, after = (tensor.role.layout if tensor.role is not None else None for tensor in (old, new))
    if before is not None and after is not None:
        numbers = numbers.transpose([before.index(axis) for axis in after])
    if shape is None:
        shape = numbers.shape if new.dynamic and numbers.ndim == len(new.shape) else new.shape
    if before is not None and after is not None:
        axis = after.index("T")
        if new.is_window_cache and not old.is_window_cache:
            numbers = numbers.take(range(first, numbers.shape[axis]), axis)
        missing = shape[axis] - numbers.shape[axis]
        if missing > 0:
            numbers = np.pad(numbers, [(0, missing if i == axis else 0) for i in range(numbers.ndim)])
        else:
            numbers = numbers.take(range(shape[axis]), axis)
    if numbers.size != np.prod(shape):
        return None
    return np.asarray(numbers.reshape(shape), new.dtype, order="C")  # a scalar stays one


def relative_difference(expected: np.ndarray, actual: np.ndarray, rounded: bool = False) -> float:
    """Return the largest difference of two tensors, relative to the largest number.

    Args:
        expected: Any tensor.
        actual: The other one.
        rounded: Whether integers may differ by 1, as they stand for numbers that were rounded.

    Returns:
        The difference; infinity for other shapes, integers, NaN or infinities.
    """
    if expected.shape != actual.shape:
        return np.inf
    if expected.dtype.kind in "iu" and rounded:
        return 0.0 if np.abs(expected.astype(np.int64) - actual).max(initial=0) <= 1 else np.inf
    if expected.dtype.kind not in "fc" and expected.dtype.name != "bfloat16":
        return 0.0 if np.array_equal(expected, actual) else np.inf
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    a, b = expected.astype(wide), actual.astype(wide)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(
        a[~finite], b[~finite], equal_nan=True
    ):
        return np.inf
    gap = np.abs(a[finite] - b[finite])
    return float(gap.max(initial=0) / max(SMALLEST, np.abs(a[finite]).max(initial=0)))
