"""The prefill plan: the runs of prefill graphs that read a prompt."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Chunk:
    """One run of a prefill of T tokens: the ids of positions `start` to `stop` - 1, padded at the end to T.

    Rows from `stop` to `start` + T - 1 are undefined afterwards. Decode writes each before it is read.
    """

    length: int
    """T, which identifies the prefill."""
    start: int
    stop: int


def plan_chunks(
    length: int,
    capacity: int,
    anywhere: Collection[int],
    at_start: Collection[int] = (),
    num_cached: int = 0,
    feeds_again: bool = True,
) -> list[Chunk]:
    """Return the runs that fill rows `num_cached` to `length` - 1 of the KV caches.

    Each run takes the smallest T that holds the remaining tokens, else the largest T. A run writes all its T
    rows. Where the last run would end beyond the capacity, it starts earlier instead. It then feeds a few ids
    again at their old positions, and writes the same keys and values.

    Args:
        length: P, the number of tokens of the prompt.
        capacity: S, the number of rows of the KV caches.
        anywhere: Lengths T <= S of the prefills that start at any position, at least one.
        at_start: Lengths T, of any size, of the prefills that start at position 0 only.
        num_cached: Number of leading rows that are valid already.
        feeds_again: Whether a run may start earlier. If not, runs at the end of the capacity are shorter;
            one of the lengths is then 1.

    Returns:
        The runs in order.

    Raises:
        ValueError: The prompt is longer than the capacity.
    """
    if length > capacity:
        raise ValueError(f"{length} positions of {capacity}")
    runs: list[Chunk] = []
    done = num_cached
    while done < length:
        lengths = [*anywhere, *at_start] if done == 0 else [*anywhere]
        if not feeds_again:
            lengths = [T for T in lengths if done + T <= capacity]
        size = min((T for T in lengths if length - done <= T), default=max(lengths))
        start = min(done, capacity - size) if size in anywhere else 0
        done = min(start + size, length)
        runs.append(Chunk(size, start, done))
    return runs


def split_evenly(start: int, stop: int, size: int) -> list[Chunk]:
    """Split positions into runs of any length up to a size.

    Args:
        start: The first position.
        stop: The position behind the last one.
        size: The most tokens of a run.

    Returns:
        The runs in order.
    """
    starts = range(start, stop, size)
    stops = [min(first + size, stop) for first in starts]
    return [Chunk(last - first, first, last) for first, last in zip(starts, stops, strict=True)]
