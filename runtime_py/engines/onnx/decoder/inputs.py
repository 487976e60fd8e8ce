"""What the inputs of a decoder are fed that are no caches: ids, positions, masks, numbers and switches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from runtime_py.engines.attention_mask import fill_mask
from runtime_py.engines.onnx.decoder.interface import Interface, Tensor


@dataclass(frozen=True)
class Run:
    """A run of a graph on consecutive tokens of one text.

    Attributes:
        tokens: The ids [T].
        start: The position of the first.
        all_logits: Whether the logits of each token are wanted, not only of the last.
        length: T, of which the last tokens are padding; None for the number of tokens.
    """

    tokens: Sequence[int]
    start: int
    all_logits: bool = False
    length: int | None = None

    @property
    def stop(self) -> int:
        """The position after the last token."""
        return self.start + len(self.tokens)


def feed(interface: Interface, run: Run, mask_rows: int | None = None) -> list[tuple[Tensor, np.ndarray]]:
    """Compute the inputs of a run that are no caches.

    Args:
        interface: The inputs.
        run: The run.
        mask_rows: S, the number of keys that a mask of any size covers; None for those of the text alone.

    Returns:
        Each input and its numbers.
    """
    tokens = interface.tokens
    length = run.length or len(run.tokens)
    ids = np.zeros((1, length), _numpy(tokens.dtype))
    ids[0, : len(run.tokens)] = run.tokens
    feeds = [(tokens, ids)]
    for tensor, kind in interface.inputs:
        if kind == "mask":
            numbers = _mask(tensor, run, length, mask_rows)
        else:
            numbers = np.asarray(_numbers(interface, tensor, kind, run, length), _numpy(tensor.dtype))
        feeds.append((tensor, np.ascontiguousarray(numbers).reshape(numbers.shape)))
    return feeds


def _numbers(interface: Interface, tensor: Tensor, kind: str, run: Run, length: int) -> np.ndarray:
    rank = len(tensor.dims)
    if kind == "position":
        return _positions(interface, tensor, run.start, length)
    number = {
        "last_position": run.stop - 1,
        "length": run.stop,
        "use_cache": run.start > 0,
        "num_logits": 0 if run.all_logits else 1,
    }[kind]
    return np.full((1,) * rank, number)


def _positions(interface: Interface, tensor: Tensor, start: int, length: int) -> np.ndarray:
    """One position, or that of each token: for rank 3, as of multimodal models, on each of three axes."""
    dims = tensor.dims
    if not dims or (len(dims) == 1 and dims[0] in (1, interface.batch)):
        return np.full((1,) * len(dims), start)
    positions = np.arange(start, start + length)
    if len(dims) == 1:
        return positions
    axes = [dim if isinstance(dim, int) else 1 for dim in dims[:-1]]
    if len(dims) == 3 and not isinstance(dims[0], int):
        axes[0] = 3
    return np.broadcast_to(positions if dims[-1] != 1 else positions[:1], (*axes, length))


def _mask(tensor: Tensor, run: Run, length: int, mask_rows: int | None) -> np.ndarray:
    keys = _fixed(tensor, -1) or mask_rows or run.start + length
    if len(tensor.dims) < 3:
        mask = np.zeros((1,) * (len(tensor.dims) - 1) + (keys,), _numpy(tensor.dtype))
    else:
        queries = _fixed(tensor, -2) or length
        mask = np.zeros((1,) * (len(tensor.dims) - 2) + (queries, keys), _numpy(tensor.dtype))
    fill_mask(mask, run.start, len(run.tokens), length)
    return mask


def _fixed(tensor: Tensor, axis: int) -> int | None:
    """The size of an axis that the graph fixes, else None. A size of 1 may be that of one token."""
    dim = tensor.dims[axis]
    return dim if isinstance(dim, int) else None


def _numpy(dtype: ir.DataType) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16) if dtype == ir.DataType.BFLOAT16 else dtype.numpy()
