"""The protocol of a predictor: it computes the logits of the next token, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from runtime_py.engines.engine import CausalLM
from tinyllama.verification.trace import Trace


class Predictor(CausalLM, Protocol):
    """An engine session with a name and with access to its intermediate tensors."""

    label: str

    def trace(self, prompt: Sequence[int], generated: Sequence[int] = ()) -> Trace:
        """Return the intermediate tensors of one run.

        Args:
            prompt: The prompt's ids.
            generated: Ids after it; the last is fed in the traced run. Empty: the run of the prompt.

        Returns:
            The tensors. The state before this call is lost: begin with a prompt again.
        """
        ...


class PromptPredictor(Predictor, Protocol):
    """A predictor that computes the logits of every token of a prompt."""

    def scores(self, tokens: Sequence[int]) -> np.ndarray:
        """Compute the logits of every token of a prompt.

        Args:
            tokens: P ids.

        Returns:
            float32 [P, V].
        """
        ...
