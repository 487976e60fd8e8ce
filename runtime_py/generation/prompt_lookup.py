"""Prompt lookup: a draft of the next tokens, copied from an earlier place of the text that reads alike.

    text    a b c d e f g h  x  b c d              "c d" occurred before
    draft                               e f g h    so what followed there may follow here

Summaries, edits, code and JSON repeat their prompt or themselves, with changes. After a change, the copy
resumes behind the place where it broke off:

    text    a b c d e f g h  x  a b c d Q f        "Q" in place of "e"
    draft                                   g h    "f" is near the break, so the copy resumes there

The more tokens the two places have in common, the more likely the next one agrees. A copied token that was
itself predicted wrongly is less likely: it is often a value in a template, and differs the next time, too.
Each new token shows whether its prediction was right, also while no draft is used. So the quality of drafts
is always known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle, islice

MAX_MATCH = 32
"""Common tokens that are counted."""
MAX_BREAKS = 3
"""Breaks that are remembered."""
RESUME_WINDOW = 16
"""Tokens behind a break among which the copy may resume."""
SAME_BREAK = 4
"""Tokens between two breaks that count as one."""
MEMORY = 0.97
"""The weight of a token relative to the next one of the same class."""
NEGLIGIBLE = 0.01
"""The probability below which further tokens of a draft are not expected."""
PRIOR_WEIGHT = 4.0
"""Tokens that a prior counts as."""
_MATCHES = (0, 1, 2, 3, 4, 8, 16)
"""The classes of places, by the least number of common tokens."""
_PRIORS = ((0.0, 0.1, 0.25, 0.45, 0.6, 0.8, 0.93), (0.2, 0.3, 0.6, 0.7, 0.8, 0.9, 0.95))
"""How often a copied token agrees at first, by class: where two tokens agree, and where a copy resumed."""
_UNPREDICTED, _RIGHT, _WRONG = range(3)  # how a token of the text itself was predicted
_FACTORS = {_UNPREDICTED: 1.0, _RIGHT: 1.1, _WRONG: 0.3}
"""The share of the prior by how the copied token was predicted."""
_LARGEST_PRIOR = 0.97
_INITIAL = [
    min(prior * factor, _LARGEST_PRIOR) for row in _PRIORS for prior in row for factor in _FACTORS.values()
]
_CLASSES = [
    len(_FACTORS) * max(index for index, least in enumerate(_MATCHES) if least <= length)
    for length in range(MAX_MATCH + 1)
]
_RESUMED = len(_FACTORS) * len(_MATCHES)


class PromptLookup:
    """Drafts for one text.

    Attributes:
        place: The index of the next token at the earlier place; 0 for no place.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        """Read a prompt.

        Args:
            ids: Token ids [P].
        """
        self.place = 0
        self._match = 0  # tokens that the place has in common
        self._resumed = 0  # `_RESUMED` if a copy resumed there
        self._ids = [*ids]
        self._predicted = bytearray(len(self._ids))  # for each token: _UNPREDICTED, _RIGHT or _WRONG
        pairs = zip(self._ids, self._ids[1:], strict=False)
        self._latest = {
            pair: index for index, pair in enumerate(pairs, 2)
        }  # index behind the latest such pair
        self._breaks: list[int] = []  # the latest first
        self._agreed = [PRIOR_WEIGHT * prior for prior in _INITIAL]
        self._seen = [PRIOR_WEIGHT] * len(_INITIAL)
        if len(self._ids) > 2:
            last = (self._ids[-2], self._ids[-1])
            earlier = (index for index in range(len(self._ids) - 1, 1, -1) if self._pair(index) == last)
            self._choose(next(earlier, 0))

    def append(self, token: int) -> None:
        """Append a token to the text.

        Args:
            token: A token id.
        """
        ids, place, substituted = self._ids, self.place, 0
        predicted = _UNPREDICTED
        if place:
            agrees = ids[place] == token
            index = self._resumed + _CLASSES[self._match] + self._predicted[place]
            if agrees:
                predicted = _RIGHT
            elif self._agreed[index] > 0.5 * self._seen[index]:
                predicted = _WRONG
            self._seen[index] = MEMORY * self._seen[index] + 1
            self._agreed[index] = MEMORY * self._agreed[index] + agrees
        ids.append(token)
        self._predicted.append(predicted)
        pair = (ids[-2], token)
        latest = self._latest.get(pair, 0)
        self._latest[pair] = len(ids)
        if predicted == _RIGHT:
            self.place += 1
            self._match = min(self._match + 1, MAX_MATCH)
            return
        if place and self._match > 2:
            apart = [other for other in self._breaks if abs(other - place) > SAME_BREAK]
            self._breaks = [place, *apart[: MAX_BREAKS - 1]]
            substituted = place + 1
        self._choose(latest, substituted)

    def draft(self, count: int) -> list[int]:
        """Predict the next tokens.

        Args:
            count: The number of tokens.

        Returns:
            Token ids [count]; none if no earlier place reads alike.
        """
        if not self.place:
            return []
        return [self._ids[index] for index in self._copied(count)]

    def expected(self, count: int) -> list[float]:
        """Estimate how many tokens of a draft agree before the first that does not.

        Args:
            count: The number of tokens of the draft.

        Returns:
            The expected number for the first n tokens of the draft, for each n from 0 to `count`.
        """
        total, probability, totals = 0.0, 1.0, [0.0]
        if not self.place:
            return totals * (count + 1)
        for length, place in enumerate(self._copied(count), self._match):
            probability *= self._probability(place, length, self._resumed)
            total += probability
            totals.append(total)
            if probability < NEGLIGIBLE:
                break
        return totals + [total] * (count + 1 - len(totals))

    def _copied(self, count: int) -> Iterable[int]:
        """The indices of the tokens of a draft, which goes on in itself behind the end of the text."""
        indices = range(self.place, len(self._ids))
        return islice(indices if len(indices) >= count else cycle(indices), count)

    def _choose(self, latest: int, substituted: int = 0) -> None:
        """Choose the place whose next token is most likely.

        latest: The index behind the latest earlier place of the last two tokens; 0 for none.
        substituted: The index behind the token that the last one may stand for; 0 for none.
        """
        places = [(latest, self._common(latest), 0)] if latest else []
        for broken in self._breaks:
            try:
                place = 1 + self._ids.index(
                    self._ids[-1], broken, min(broken + RESUME_WINDOW, len(self._ids) - 1)
                )
            except ValueError:
                continue
            places.append((place, self._common(place), _RESUMED))
        if substituted:
            places.append((substituted, 0, _RESUMED))
        best = 0.0
        self.place = 0
        for place, match, resumed in places:
            if (probability := self._probability(place, match, resumed)) > best:
                best = probability
                self.place, self._match, self._resumed = place, match, resumed

    def _probability(self, place: int, match: int, resumed: int) -> float:
        """How likely a copied token agrees."""
        index = resumed + _CLASSES[min(match, MAX_MATCH)] + self._predicted[place]
        return self._agreed[index] / self._seen[index]

    def _common(self, place: int) -> int:
        """The number of tokens that an earlier place has in common with the end of the text."""
        ids, length, most = self._ids, 0, min(place, MAX_MATCH)
        while length < most and ids[place - 1 - length] == ids[-1 - length]:
            length += 1
        return length

    def _pair(self, index: int) -> tuple[int, int]:
        """The two tokens before an index."""
        return self._ids[index - 2], self._ids[index - 1]
