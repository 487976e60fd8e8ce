"""KV caches of several capacities: rows are copied once, and two capacities are allocated at most."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_py.engines.litert.kv_caches import CacheBuffers, KVCaches
from runtime_py.model.contract import Contract, SignatureSpec
from tests.runtime_py.toy import Toy

CAPACITIES = (2, 4, 8)


def decodes() -> dict[int, SignatureSpec]:
    """The toy's decode signature, with KV caches of each capacity."""
    decode = Contract.parse(Toy(capacity=8).contract).decode

    def resized(capacity: int) -> SignatureSpec:
        inputs = []
        for tensor in decode.inputs:
            shape = list(tensor.shape)
            if tensor.slot in decode.caches:
                shape[tensor.layout.index("T")] = capacity
            inputs.append(replace(tensor, shape=tuple(shape)))
        return SignatureSpec(decode.name, tuple(inputs), decode.outputs)

    return {capacity: resized(capacity) for capacity in CAPACITIES}


def allocate(decode: SignatureSpec) -> CacheBuffers[str]:
    return {slot: ("buffer", np.zeros(cache.shape, cache.dtype)) for slot, cache in decode.caches.items()}


def rows(decode: SignatureSpec, buffers: CacheBuffers[str]) -> list[np.ndarray]:
    """The KV caches by position: [S, ...]."""
    return [
        np.moveaxis(array, decode.caches[slot].layout.index("T"), 0) for slot, (_, array) in buffers.items()
    ]


@given(st.lists(st.tuples(st.integers(0, 7), st.booleans()), min_size=1, max_size=30))
def test_valid_rows_follow_the_text(steps):
    """Each step writes one row behind a prefix of the text, in the smallest capacity or the largest."""
    signatures = decodes()
    caches = KVCaches(signatures, allocate)
    text: list[int] = []
    for number, (position, largest) in enumerate(steps, 1):
        start = min(position, len(text))
        capacity = max(CAPACITIES) if largest else caches.smallest_capacity(start)
        assert capacity > start
        buffers = caches.select(capacity, start, start + 1)
        for array in rows(signatures[capacity], buffers):
            assert [row.flat[0] for row in array[:start]] == text[:start]
            array[start] = number
        text[start:] = [number]
        assert len(caches.allocated.keys() - {max(CAPACITIES)}) <= 1


@pytest.mark.parametrize(("position", "capacity"), [(0, 2), (1, 2), (2, 4), (3, 4), (4, 8), (7, 8)])
def test_the_smallest_capacity_that_holds_a_position(position, capacity):
    assert KVCaches(decodes(), allocate).smallest_capacity(position) == capacity
