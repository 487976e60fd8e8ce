"""The report of a stopwatch, and peak memory."""

from __future__ import annotations

import re

import numpy as np

from runtime_py.benchmark.timing import Stats, peak_memory
from runtime_py.engines.prefill_plan import Chunk


def test_report():
    stats = Stats(new_tokens=3, load=0.25, first=0.5, rest=1.0)
    runs = [Chunk(8, 2, 10), Chunk(8, 10, 18), Chunk(4, 16, 20)]
    lines = stats.report(runs).split("\n")
    assert lines[:3] == [
        "load:    0.250 s",
        "prefill: 36.0 tokens/s (18 tokens in 2 x 8 + 4), first token after 500.0 ms",
        "decode:  2.0 tokens/s (2 steps)",
    ]
    assert re.fullmatch(r"memory:  \d+ MB at most", lines[3])


def test_one_token_has_no_decode_step():
    stats = Stats()
    stats.begin()
    stats.token()
    prefill, memory = stats.report([Chunk(4, 0, 3)]).split("\n")
    assert prefill.startswith("prefill: ")
    assert memory.startswith("memory: ")


def test_peak_memory_grows_with_the_process():
    before = peak_memory()
    held = np.ones(50_000_000, np.uint8)
    assert peak_memory() >= before
    assert held.nbytes / 1e6 < peak_memory()
