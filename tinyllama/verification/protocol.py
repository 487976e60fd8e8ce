"""What is compared: something that predicts the next token, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from runtime_py.engines.engine import EngineSession
from tinyllama.verification.trace import Trace


class Predictor(EngineSession, Protocol):
    """An engine session with a name, whose tensors on the way can be seen."""

    label: str

    def trace(self, prompt: Sequence[int], generated: Sequence[int] = ()) -> Trace:
        """The tensors on the way when the last of `generated` is fed, all before having been; when nothing
        is generated yet, those of all tokens of `prompt`. Starts anew, as must what it is asked next."""
        ...


class PromptPredictor(Predictor, Protocol):
    """One that gives the logits of every token of a prompt."""

    def scores(self, tokens: Sequence[int]) -> np.ndarray:
        """As `prefill`, but [P, V]."""
        ...
