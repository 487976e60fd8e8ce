"""This project: an engine of a package, as `runtime_py.run` uses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import runtime_py.engines.litert.engine  # noqa: F401  libraries are no part of loading, here as elsewhere
from bench.peers.runners.serving import serve
from runtime_py.package import Package


class ThisProject:
    """See `Runner`."""

    def __init__(self, model: str, checkpoint: str, engine: str, threads: int, **_: Any) -> None:
        loaded = Package.load(model, checkpoint).engine(threads=threads, engine=engine)
        self._session = loaded.open_session()

    def prefill(self, ids: Sequence[int]) -> int:
        self._logits = self._session.prefill(ids)
        self._position = len(ids)
        return int(self._logits.argmax())

    def decode(self, token: int) -> int:
        self._logits = self._session.decode(token, self._position)
        self._position += 1
        return int(self._logits.argmax())

    def logits(self) -> np.ndarray:
        return self._logits


if __name__ == "__main__":
    serve(ThisProject)
