"""Which runs of the prefills read a prompt."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Chunk:
    """One run of a prefill of T tokens: the ids of positions `start` to `stop` - 1, padded at their end to T.

    The rows behind `stop` get garbage, as far as start + T: decode writes each of them before it is seen.
    """

    length: int
    """T, by which the prefill is known."""
    start: int
    stop: int


def chunks(
    prompt: int,
    capacity: int,
    anywhere: Collection[int],
    at_start: Collection[int] = (),
    kept: int = 0,
) -> list[Chunk]:
    """The runs that fill rows `kept` to `prompt` - 1 of caches of `capacity` rows, in order.

    prompt: at most `capacity`. kept: rows below are filled already. anywhere: lengths T <= `capacity` of the
    prefills that start at any position, one at least. at_start: lengths, of any size, of those that only read
    a prompt's beginning.

    Each run takes the smallest T that holds what is left, else the largest. A run writes all its T rows, so
    where the last would end beyond the capacity it starts earlier instead and feeds a few ids once more: at
    their old positions, where they give the keys and values that are there.
    """
    if prompt > capacity:
        raise ValueError(f"{prompt} positions of {capacity}")
    runs: list[Chunk] = []
    done = kept
    while done < prompt:
        lengths = [*anywhere, *at_start] if done == 0 else [*anywhere]
        length = min((T for T in lengths if prompt - done <= T), default=max(lengths))
        start = min(done, capacity - length) if length in anywhere else 0
        done = min(start + length, prompt)
        runs.append(Chunk(length, start, done))
    return runs
