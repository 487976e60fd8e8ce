"""Rows of KV caches outside of an engine, in one layout for all engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from o2o.contract import Slot
from runtime_py.engines.window_rows import WindowRows


class RowsDoNotFit(ValueError):
    """Rows have other caches, shapes or dtypes than the model."""


@dataclass(frozen=True)
class CachedRows:
    """The keys and values of the first positions of a text.

    Attributes:
        stop: The number of positions.
        lowest: The first position whose rows window caches hold; 0 if all are full.
        tensors: The rows of each cache, by name: [stop, K, H], of window caches [stop - lowest, K, H].
    """

    stop: int
    lowest: int
    tensors: Mapping[str, np.ndarray]

    def copied(self) -> CachedRows:
        """Copy the rows out of the caches that they are views of.

        Returns:
            The same rows, which the caller owns.
        """
        tensors = {name: np.array(rows, order="C") for name, rows in self.tensors.items()}
        return CachedRows(self.stop, self.lowest, tensors)


def slot_name(slot: Slot) -> str:
    """Return the name of a cache.

    Args:
        slot: The slot of the cache.

    Returns:
        The name, such as `key.0`.
    """
    kind, layer = slot
    return f"{kind}.{layer}"


def by_position(array: np.ndarray, layout: str) -> np.ndarray:
    """Return a view of a cache by position.

    Args:
        array: The cache, of one text.
        layout: Its axes, such as "BNTH".

    Returns:
        The view [S, K, H].
    """
    view: np.ndarray = array.transpose([layout.index(axis) for axis in "BTNH"])[0]
    return view


def view_rows(
    full: Mapping[Slot, np.ndarray],
    windows: Mapping[Slot, np.ndarray],
    held: WindowRows | None,
    stop: int,
) -> CachedRows:
    """View the rows of a text in its caches, without a copy.

    Args:
        full: Views [S, K, H] of the full caches.
        windows: Views [R, K, H] of the window caches.
        held: The positions that window caches hold; None if there are none.
        stop: The number of positions.

    Returns:
        The rows. They change with the caches.
    """
    first, lowest = (held.first, held.lowest) if held is not None else (0, 0)
    tensors = {slot_name(slot): view[:stop] for slot, view in full.items()}
    for slot, view in windows.items():
        tensors[slot_name(slot)] = view[lowest - first : stop - first]
    return CachedRows(stop, lowest if windows else 0, tensors)


def copy_in(
    rows: CachedRows,
    full: Mapping[Slot, np.ndarray],
    windows: Mapping[Slot, np.ndarray],
    held: WindowRows | None,
    start: int,
    stop: int,
) -> None:
    """Copy rows into the caches of a text.

    Args:
        rows: The rows. Window caches need those that a query at `stop` sees.
        full: Views [S, K, H] of the full caches.
        windows: Views [R, K, H] of the window caches.
        held: The positions that window caches hold, which is changed; None if there are none.
        start: The first row of full caches to copy.
        stop: The number of positions.
    """
    for slot, view in full.items():
        view[start:stop] = rows.tensors[slot_name(slot)][start:stop]
    if held is None:
        return
    held.hold_last(stop, rows.lowest)
    for slot, view in windows.items():
        held_rows = slice(held.first - rows.lowest, stop - rows.lowest)
        view[: stop - held.first] = rows.tensors[slot_name(slot)][held_rows]


def check_fit(
    rows: CachedRows, full: Mapping[Slot, np.ndarray], windows: Mapping[Slot, np.ndarray], stop: int
) -> None:
    """Check that rows can be copied into the caches of a text.

    Args:
        rows: The rows.
        full: Views [S, K, H] of the full caches.
        windows: Views [R, K, H] of the window caches.
        stop: The number of positions to copy.

    Raises:
        RowsDoNotFit: They cannot.
    """
    both = {**full, **windows}
    caches = {slot_name(slot): view for slot, view in both.items()}
    lengths = {slot_name(slot): rows.stop - (rows.lowest if slot in windows else 0) for slot in both}
    check_tensors(rows, caches, lengths)
    if stop > min((view.shape[0] for view in full.values()), default=stop):
        raise RowsDoNotFit(f"{stop} rows do not fit into the caches")


def check_tensors(rows: CachedRows, caches: Mapping[str, np.ndarray], lengths: Mapping[str, int]) -> None:
    """Check the names, shapes and dtypes of rows.

    Args:
        rows: The rows.
        caches: Arrays by name, by position on the first axis.
        lengths: The number of rows that each cache must have.

    Raises:
        RowsDoNotFit: They differ.
    """
    if rows.tensors.keys() != caches.keys():
        raise RowsDoNotFit("the rows belong to other caches")
    for name, cache in caches.items():
        tensor = rows.tensors[name]
        if (tensor.dtype, tensor.shape) != (cache.dtype, (lengths[name], *cache.shape[1:])):
            raise RowsDoNotFit(f"the rows of {name} have another shape or dtype")
