"""Runner of llama.cpp: its C functions through llama-cpp-python, called as in `llama-bench`."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_int32
from typing import Any

import llama_cpp as c
import numpy as np

from bench.peers.runners.serving import serve


class LlamaCpp:
    """See `Runner`."""

    def __init__(self, model: str, threads: int, capacity: int, **_: Any) -> None:
        c.llama_backend_init()
        self._model = c.llama_model_load_from_file(model.encode(), c.llama_model_default_params())
        assert self._model, f"{model}: llama.cpp cannot load it"
        parameters = c.llama_context_default_params()
        parameters.n_ctx = capacity
        parameters.n_threads = parameters.n_threads_batch = threads
        self._context = c.llama_init_from_model(self._model, parameters)
        assert self._context, "no context"
        self._vocab_size = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self._model))

    def prefill(self, ids: Sequence[int]) -> int:
        c.llama_memory_clear(c.llama_get_memory(self._context), True)
        return self._feed(ids)

    def decode(self, token: int) -> int:
        return self._feed([token])

    def logits(self) -> np.ndarray:
        return np.ctypeslib.as_array(c.llama_get_logits_ith(self._context, -1), (self._vocab_size,))

    def _feed(self, ids: Sequence[int]) -> int:
        tokens = (c_int32 * len(ids))(*ids)
        failed = c.llama_decode(self._context, c.llama_batch_get_one(tokens, len(ids)))
        assert not failed, f"llama_decode returned {failed}"
        return int(self.logits().argmax())


if __name__ == "__main__":
    serve(LlamaCpp)
