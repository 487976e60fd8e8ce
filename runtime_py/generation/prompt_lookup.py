"""Prompt lookup: a draft of the next tokens, copied from an earlier place of the text that reads alike.

    text    a b c d e f g x y  b c d           the last tokens "b c d" occurred before
    draft                            e f g x   so what followed there may follow here

Summaries, edits, code and JSON repeat their prompt. Other texts do so now and then. The more tokens the two
places have in common, the more likely the next one agrees. Each new token shows whether it did, also while no
draft is used. So the quality of drafts is always known.
"""

from __future__ import annotations

from collections.abc import Sequence

LONGEST_NGRAM, SHORTEST_NGRAM = 3, 2
"""Tokens that two places must have in common."""
MAX_CANDIDATES = 8
"""Earlier places that are compared, the latest first."""
MAX_MATCH = 32
"""Common tokens that are counted."""
PRIOR = {2: 0.2, 3: 0.4, 4: 0.6, 8: 0.8, 16: 0.9}
"""How often the next token agrees at first, by the least number of common tokens."""
PRIOR_WEIGHT = 3.0
"""Tokens that the prior counts as."""
MEMORY = 0.97
"""The weight of a token relative to the next one of the same class."""
_CLASSES = [max(least for least in PRIOR if least <= max(length, 2)) for length in range(MAX_MATCH + 1)]


class PromptLookup:
    """Drafts for one text.

    Attributes:
        match: The number of tokens that the earlier place has in common, at most `MAX_MATCH`; 0 for no place.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        """Read a prompt.

        Args:
            ids: Token ids [P].
        """
        self.match = 0
        self._ids: list[int] = []
        self._place = 0  # the index of the token that followed at the earlier place
        self._places: dict[tuple[int, ...], list[int]] = {}
        self._agreed = {least: PRIOR_WEIGHT * share for least, share in PRIOR.items()}
        self._seen = dict.fromkeys(PRIOR, PRIOR_WEIGHT)
        places: list[list[int]] = []
        for token in ids:
            places = self._append(token)
        self._find(places)

    def append(self, token: int) -> None:
        """Append a token to the text.

        Args:
            token: A token id.
        """
        if not self.match:
            if places := self._append(token):
                self._find(places)
            return
        agrees = self._ids[self._place] == token
        least = _CLASSES[self.match]
        self._seen[least] = MEMORY * self._seen[least] + 1
        self._agreed[least] = MEMORY * self._agreed[least] + agrees
        places = self._append(token)
        if agrees:
            self.match = min(self.match + 1, MAX_MATCH)
            self._place += 1
        else:
            self._find(places)

    def draft(self, count: int) -> list[int]:
        """Predict the next tokens.

        Args:
            count: The number of tokens.

        Returns:
            Token ids [count]; none if no earlier place reads alike.
        """
        if not self.match:
            return []
        ids, place = self._ids, self._place
        period = len(ids) - place  # the draft goes on in itself where the earlier place is near the end
        return [ids[place + index % period] for index in range(count)]

    def expected(self, count: int) -> float:
        """Estimate how many tokens of a draft agree before the first that does not.

        Args:
            count: The number of tokens of the draft.

        Returns:
            The expected number, from 0 to `count`.
        """
        total, probability = 0.0, 1.0
        for length in range(self.match, self.match + count if self.match else 0):
            least = _CLASSES[min(length, MAX_MATCH)]
            probability *= self._agreed[least] / self._seen[least]
            total += probability
        return total

    def _append(self, token: int) -> list[list[int]]:
        """The earlier places that read like the end of the text: by n-gram, the longest first."""
        ids, all_places = self._ids, self._places
        ids.append(token)
        known: list[list[int]] = []
        for size in range(min(LONGEST_NGRAM, len(ids)), SHORTEST_NGRAM - 1, -1):
            ngram = tuple(ids[-size:])
            if (places := all_places.get(ngram)) is not None:
                known.append(places)
            else:
                places = all_places[ngram] = []
            places.append(len(ids))
        return known

    def _find(self, places_by_ngram: list[list[int]]) -> None:
        """Find the earlier place that has most tokens in common, the latest of equal ones."""
        ids, self.match = self._ids, 0
        for places in places_by_ngram[:1]:
            for place in reversed(places[-MAX_CANDIDATES - 1 : -1]):  # without the end of the text itself
                length = 0
                while length < MAX_MATCH and length < place and ids[place - 1 - length] == ids[-1 - length]:
                    length += 1
                if length > self.match:
                    self.match, self._place = length, place
