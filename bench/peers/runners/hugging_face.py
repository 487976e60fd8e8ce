"""Runner of Hugging Face transformers: the model's forward with a cache, as in `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from bench.peers.runners.serving import serve


class HuggingFace:
    """See `Runner`."""

    def __init__(self, model: str, precision: str, threads: int, **_: Any) -> None:
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self._model = AutoModelForCausalLM.from_pretrained(
            model, dtype=getattr(torch, precision), trust_remote_code=False
        ).eval()

    def prefill(self, ids: Sequence[int]) -> int:
        self._cache = DynamicCache(config=self._model.config)
        return self._feed(ids)

    def decode(self, token: int) -> int:
        return self._feed([token])

    def logits(self) -> np.ndarray:
        return self._logits.float().numpy()

    def _feed(self, ids: Sequence[int]) -> int:
        output = self._model(
            torch.tensor([ids]), past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        self._logits = output.logits[0, -1]
        return int(self._logits.argmax())


if __name__ == "__main__":
    serve(HuggingFace)
