"""Runner of LiteRT-LM's own benchmark. The check of its ids uses sessions, as `litert_lm` does.

Each benchmark loads the engine again, and reads token ids of its own. It reports tokens/s of one prefill, and
the mean tokens/s of all decode steps.
"""

from __future__ import annotations

from typing import Any

import litert_lm

from bench.peers.runners.litert_lm import LiteRtLm
from bench.peers.runners.serving import serve


class LiteRtLmBenchmark(LiteRtLm):
    """See `Runner`."""

    def __init__(self, model: str, threads: int, capacity: int, **fields: Any) -> None:
        super().__init__(model, threads, **fields)
        self._settings = {
            "model_path": model,
            "backend": litert_lm.interfaces.CPU(thread_count=threads),
            "max_num_tokens": capacity,
        }

    def prefill_time(self, length: int) -> float:
        """See `serving.prefill`."""
        return length / self._run(length, 1).last_prefill_tokens_per_second

    def decode_time(self, length: int, tokens: int) -> float:
        """See `serving.decode`."""
        return 1 / self._run(length, tokens).last_decode_tokens_per_second

    def _run(self, length: int, tokens: int) -> litert_lm.BenchmarkInfo:
        self.stop()
        return litert_lm.Benchmark(**self._settings, prefill_tokens=length, decode_tokens=tokens).run()


if __name__ == "__main__":
    serve(LiteRtLmBenchmark)
