"""What transformers computes for each prompt: greedy tokens, and the logits before each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tests.families.cases import CONTEXT


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


def texts(model: Any, prompts: Sequence[int], steps: int, seed: int = 1) -> list[Text]:
    """Continue random prompts greedily.

    Args:
        model: transformers' model.
        prompts: P, lengths of prompts.
        steps: The largest number of tokens that follow a prompt.
        seed: The seed of the random tokens.

    Returns:
        One text for each prompt, of up to `CONTEXT` tokens.
    """
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    random = np.random.default_rng(seed)
    return [_continued(model, random.integers(1, vocabulary, length).tolist(), steps) for length in prompts]


@torch.no_grad()
def _continued(model: Any, prompt: list[int], steps: int) -> Text:
    tokens, new, cache = list(prompt), list(prompt), None
    for _ in range(min(steps, CONTEXT - len(prompt))):
        output = model(torch.tensor([new]), past_key_values=cache, use_cache=True)
        new, cache = [int(output.logits[0, -1].argmax())], output.past_key_values
        tokens += new
    # One pass over the whole text: independent of transformers' own cache.
    logits = model(torch.tensor([tokens]), use_cache=False).logits[0, len(prompt) - 1 :].numpy()
    return Text(len(prompt), tokens, logits)
