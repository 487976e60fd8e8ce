"""Runner of onnxruntime-genai: its generator, greedy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime_genai as og

from bench.peers.runners.serving import serve


class OrtGenai:
    """See `Runner`."""

    def __init__(self, model: str, threads: int, capacity: int, **_: Any) -> None:
        config = og.Config(model)
        session = {"session_options": {"intra_op_num_threads": threads}}
        # With random weights the end of sequence may come at any time: it is disabled.
        config.overlay(json.dumps({"model": {"decoder": session, "eos_token_id": []}}))
        self._model = og.Model(config)
        parameters = og.GeneratorParams(self._model)
        parameters.set_search_options(do_sample=False, max_length=capacity)
        self._generator = og.Generator(self._model, parameters)

    def prefill(self, ids: Sequence[int]) -> int:
        self._generator.rewind_to(0)
        self._generator.append_tokens(np.asarray(ids, np.int32))
        self._generator.generate_next_token()  # from the logits of the last token
        return int(self._generator.get_next_tokens()[0])

    def decode(self, token: int) -> int:
        """See `Runner`. The generator has appended its own choice; another token replaces it."""
        if token != self._generator.get_next_tokens()[0]:
            self._generator.rewind_to(self._generator.token_count() - 1)
            self._generator.append_tokens(np.asarray([token], np.int32))
        self._generator.generate_next_token()
        return int(self._generator.get_next_tokens()[0])

    def logits(self) -> np.ndarray:
        return np.asarray(self._generator.get_output("logits"), np.float32)[0, -1]


if __name__ == "__main__":
    serve(OrtGenai)
