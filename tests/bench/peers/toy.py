"""A runner without a model, whose `precision` says how it misbehaves."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.peers.runners.serving import serve

VOCABULARY = 300


class Toy:
    def __init__(self, precision: str, engine: str, **_: Any) -> None:
        print("what a library prints is no answer")
        if precision == "unloadable":
            raise ValueError("no such\nmodel")
        self._precision = precision
        self._seconds = float(engine or 0)
        self._read = list[int]()

    def prefill(self, ids: Sequence[int]) -> int:
        if self._precision == "dies":
            os.abort()
        self._read = [*ids]
        return self._best()

    def decode(self, token: int) -> int:
        if self._precision == "fails later" and len(self._read) > 70:
            raise ValueError("too long")
        time.sleep(self._seconds)
        self._read.append(token)
        if self._precision == "steps differ":
            self._read.append(1)
        return self._best()

    def logits(self) -> np.ndarray:
        seed = [*self._read, 7] if self._precision == "differs" else self._read
        return np.random.default_rng(seed).normal(size=VOCABULARY)

    def _best(self) -> int:
        return int(self.logits().argmax())


class TextToy:
    """A runner of an API without logits."""

    def __init__(self, precision: str, engine: str, **_: Any) -> None:
        self._toy = Toy(precision, engine)
        self.prefill, self.decode = self._toy.prefill, self._toy.decode


class SelfMeasuringToy(TextToy):
    """A runner that measures itself: a prefill takes 10 ms a token, a step 1 ms for each token before it."""

    def prefill_time(self, length: int) -> float:
        return length / 100

    def decode_time(self, length: int, tokens: int) -> float:
        return length / 1000


def load(precision: str, **fields: Any) -> Toy | TextToy:
    if precision == "text measured":
        return SelfMeasuringToy(precision, **fields)
    return (TextToy if precision.startswith("text") else Toy)(precision, **fields)


if __name__ == "__main__":
    serve(load)
