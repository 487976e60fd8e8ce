"""Finite logits: a model that computes NaN or infinity must not go on as if it had predicted a token."""

from __future__ import annotations

import math

import numpy as np

from o2o.errors import ModelError


def check_logits(logits: np.ndarray, position: int) -> np.ndarray:
    """Check that logits can be compared: the largest of each token is finite.

    A logit of -inf is a mask: the token has probability 0. It is refused only where all are -inf.

    Args:
        logits: [V] or [T, V].
        position: The position of the (first) token that they follow.

    Returns:
        `logits`, unchanged.

    Raises:
        ModelError: A logit is NaN or +inf, or all logits of a token are -inf.
    """
    if logits.ndim == 1:
        highest = logits[logits.argmax()]  # NaN if one is NaN; faster than `max` for small V
        if math.isfinite(highest):
            return logits
    else:
        maxima = logits.max(axis=-1)
        wrong = np.flatnonzero(~np.isfinite(maxima))
        if not wrong.size:
            return logits
        position += int(wrong[0])
        highest = maxima[wrong[0]]
    value = "NaN" if math.isnan(highest) else "+inf" if highest > 0 else "-inf for every token"
    raise ModelError(
        f"the logits after token {position + 1} are {value}: the weights are damaged, or the engine computes "
        f"wrongly (try another --engine)"
    )
