"""What transformers computes for each prompt: greedy tokens, and the logits before each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tests.families.cases import CONTEXT

STEPS = 40
"""Tokens that follow a prompt."""
PROMPTS = (1, 5, 33, 63, 64, 65, 99)
"""P, lengths of prompts: around the edges of the prefill and of the buckets, and nearly the whole context."""


@dataclass(frozen=True)
class Text:
    """A prompt and its continuation.

    Attributes:
        prompt: P, the length of the prompt.
        tokens: The prompt and the tokens that follow it.
        logits: float32 [number of tokens - P + 1, V], the logits after the prompt and after each token.
    """

    prompt: int
    tokens: list[int]
    logits: np.ndarray


def texts(model: Any, seed: int = 1) -> list[Text]:
    """Continue random prompts greedily.

    Args:
        model: transformers' model.
        seed: The seed of the random tokens.

    Returns:
        One text for each length of `PROMPTS`, of up to `CONTEXT` tokens.
    """
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    random = np.random.default_rng(seed)
    return [_continued(model, random.integers(1, vocabulary, length).tolist()) for length in PROMPTS]


@torch.no_grad()
def _continued(model: Any, prompt: list[int]) -> Text:
    tokens, new, cache = list(prompt), list(prompt), None
    for _ in range(min(STEPS, CONTEXT - len(prompt))):
        output = model(torch.tensor([new]), past_key_values=cache, use_cache=True)
        new, cache = [int(output.logits[0, -1].argmax())], output.past_key_values
        tokens += new
    # One pass over the whole text: independent of transformers' own cache.
    logits = model(torch.tensor([tokens]), use_cache=False).logits[0, len(prompt) - 1 :].numpy()
    return Text(len(prompt), tokens, logits)
