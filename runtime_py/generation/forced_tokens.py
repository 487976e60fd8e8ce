"""Forced tokens: drafts of what a grammar leaves no choice about, such as the next key of a JSON object.

    text      { "number": 7, "
    forced                     title"

The model writes the forced text, but not always with the tokens that the tokenizer would choose. So it is
counted how often it does.
"""

from __future__ import annotations

from collections.abc import Sequence

from runtime_py.generation.logits_processors import ForcesTokens

PRIOR, PRIOR_WEIGHT = 0.9, 4.0
"""How often a forced token agrees at first, and the tokens that this counts as."""
MEMORY = 0.97
"""The weight of a token relative to the next one."""


class ForcedTokens:
    """Drafts of one text by the grammar that it follows."""

    def __init__(self, processor: ForcesTokens) -> None:
        """Start before any token is predicted.

        Args:
            processor: Knows the grammar.
        """
        self._processor = processor
        self._agreed, self._seen = PRIOR * PRIOR_WEIGHT, PRIOR_WEIGHT

    def draft(self, ids: Sequence[int]) -> list[int]:
        """Predict the next tokens.

        Args:
            ids: The token ids so far.

        Returns:
            Token ids; none where there is a choice.
        """
        return self._processor.forced_tokens(ids)

    def expected(self, count: int) -> list[float]:
        """Estimate how many tokens of a draft agree before the first that does not.

        Args:
            count: The number of tokens of the draft.

        Returns:
            The expected number for the first n tokens of the draft, for each n from 0 to `count`.
        """
        share = self._agreed / self._seen
        totals = [0.0]
        for length in range(1, count + 1):
            totals.append(totals[-1] + share**length)
        return totals

    def add(self, agrees: bool) -> None:
        """Record whether a forced token was chosen.

        Args:
            agrees: Whether it was.
        """
        self._agreed = MEMORY * self._agreed + agrees
        self._seen = MEMORY * self._seen + 1
