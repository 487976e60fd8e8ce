"""How well a model predicts texts: nats a token, and perplexity.

Texts are documents, each of ids. A model reads each from its beginning, one token after the other as when it
generates, and is told what comes next; a token that had the probability p surprises it by -log p nats.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from o2o.errors import ModelError
from runtime_py.engines.engine import EngineSession


@dataclass(frozen=True)
class Score:
    """nats: the mean over `tokens` tokens."""

    nats: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """e to the nats: the number of equally likely tokens among which a choice would be as hard."""
        return math.exp(min(self.nats, 700.0))

    def change(self, since: Score) -> float:
        """By which share the perplexity is larger than that of `since`."""
        return math.expm1(self.nats - since.nats)


def documents(text: str) -> list[str]:
    """The documents of `text`, which blank lines part; without the ends of lines around them."""
    return [part.strip("\n") for part in re.split(r"\n[ \t]*\n", text) if part.strip()]


def first(documents: Iterable[Sequence[int]], tokens: int | None) -> Iterator[Sequence[int]]:
    """The beginning of `documents` in which `tokens` can be predicted (None: all), and no others in between.

    The first id of a document is given, not predicted: one of a single id has nothing to predict.
    """
    left = math.inf if tokens is None else tokens
    for ids in documents:
        if left <= 0:
            return
        if len(ids) > 1:
            yield ids if left >= len(ids) - 1 else ids[: int(left) + 1]
            left -= len(ids) - 1


def surprises(session: EngineSession, ids: Sequence[int]) -> np.ndarray:
    """-log p of ids[1:], float64 [P - 1]; of those that the caches have room for, [S].

    Raises ModelError where logits are no numbers.
    """
    ids = ids[: session.capacity + 1]
    found = np.empty(len(ids) - 1)
    for position, (fed, next_) in enumerate(pairwise(ids)):
        logits = session.decode(fed, position) if position else session.prefill([fed])
        logits = logits.astype(np.float64)
        most = logits.max()
        found[position] = most + math.log(np.exp(logits - most).sum()) - logits[next_]
        if not math.isfinite(found[position]):
            raise ModelError(f"the logits after token {position + 1} of a document are not finite numbers")
    return found


def scores(found: Sequence[Sequence[np.ndarray]]) -> list[Score]:
    """For each model, given the `surprises` of each document: its score on what all of them read."""
    shared = [min(map(len, of_document)) for of_document in zip(*found, strict=True)]
    tokens = sum(shared)
    return [
        Score(
            sum(float(nats[:count].sum()) for nats, count in zip(of_model, shared, strict=True)) / tokens,
            tokens,
        )
        for of_model in found
    ]
