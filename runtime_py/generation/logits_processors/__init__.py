"""Logits processors: functions that change the logits before a token is chosen.

Each has the meaning, and `runtime_py.generation.processor_chain` the order, of the class of the same task in
`transformers.generation.logits_process`. A caller adds functions of its own:

    def without_token_7(ids, logits):
        logits[7] = -numpy.inf
        return logits

    package.generate("Once upon a time", logits_processors=[without_token_7])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np

LogitsProcessor: TypeAlias = Callable[[Sequence[int], np.ndarray], np.ndarray]
"""Takes the token ids so far, including the prompt, and the logits [V] float32 that follow them. Returns the
logits [V] to choose from: -inf removes a token. It does not change the ids."""


@runtime_checkable
class ForcesTokens(Protocol):
    """A logits processor that knows some tokens in advance."""

    def forced_tokens(self, ids: Sequence[int]) -> list[int]:
        """Predict what the processor leaves no choice about.

        Args:
            ids: The token ids so far, as for the processor itself.

        Returns:
            The next token ids, as the tokenizer writes the only text that is allowed; none where there is a
            choice. Other ids of the same text may be allowed, too.
        """
        ...
