"""Negative log-likelihood and perplexity of texts.

A model reads each document from its beginning, in prefills that return the logits of each token. The
negative log-likelihood of a token with predicted probability p is -log p, in nats.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from o2o.errors import ModelError
from runtime_py.engines.engine import EngineSession
from runtime_py.generation.scoring import blocks, check_text


@dataclass(frozen=True)
class Score:
    """The score of a model on a dataset.

    Attributes:
        nats: The mean negative log-likelihood, in nats per token.
        tokens: The number of predicted tokens.
    """

    nats: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(nats): the number of equally likely tokens with the same uncertainty."""
        return math.exp(min(self.nats, 700.0))

    def change(self, reference: Score) -> float:
        """Compare two perplexities.

        Args:
            reference: The score of the reference model.

        Returns:
            The relative increase of the perplexity: 0.01 for 1% more.
        """
        return math.expm1(self.nats - reference.nats)


def documents(text: str) -> list[str]:
    """Split a text into documents.

    Args:
        text: Documents with blank lines between them.

    Returns:
        The documents, without line breaks around them.
    """
    return [part.strip("\n") for part in re.split(r"\n[ \t]*\n", text) if part.strip()]


def take_tokens(documents: Iterable[Sequence[int]], tokens: int | None) -> Iterator[Sequence[int]]:
    """Cut a dataset to a number of predicted tokens.

    The first id of a document is not predicted, so documents of a single id are left out.

    Args:
        documents: The ids of each document.
        tokens: The number of tokens to predict; None for all.

    Yields:
        The first documents. The last of them may be cut.
    """
    remaining = math.inf if tokens is None else tokens
    for ids in documents:
        if remaining <= 0:
            return
        if len(ids) > 1:
            yield ids if remaining >= len(ids) - 1 else ids[: int(remaining) + 1]
            remaining -= len(ids) - 1


def negative_log_likelihoods(session: EngineSession, ids: Sequence[int]) -> np.ndarray:
    """Compute the negative log-likelihood of each token of a document.

    Args:
        session: An engine session, or another model.
        ids: The document's ids [P].

    Returns:
        -log p of ids[1:] in nats, float64 [min(P - 1, S)].

    Raises:
        ModelError: Logits are not finite, an id is not below V, or a token has the probability 0.
        UsageError: An id is negative.
    """
    ids = check_text(ids[: session.capacity + 1], session)
    targets = iter(ids[1:])
    parts = [np.empty(0)]
    for logits in blocks(session.logits(ids[:-1])) if len(ids) > 1 else ():
        highest = logits.max(axis=-1, keepdims=True)
        # exp in float32 is several times as fast; the sum of V numbers needs float64
        log_sums = np.log(np.exp(logits - highest).sum(axis=-1, dtype=np.float64))
        predicted = logits[np.arange(len(logits)), [next(targets) for _ in logits]]
        parts.append(log_sums + highest[:, 0].astype(np.float64) - predicted)
    nlls = np.concatenate(parts)
    if (impossible := np.flatnonzero(~np.isfinite(nlls))).size:
        raise ModelError(f"token {impossible[0] + 2} of a document has the probability 0")
    return nlls


def scores(nlls: Sequence[Sequence[np.ndarray]]) -> list[Score]:
    """Score models on the tokens that all of them have predicted.

    Args:
        nlls: For each model, the negative log-likelihoods of each document.

    Returns:
        The score of each model.
    """
    shared = [min(map(len, of_document)) for of_document in zip(*nlls, strict=True)]
    tokens = sum(shared)
    sums = [
        sum(float(nll[:count].sum()) for nll, count in zip(of_model, shared, strict=True))
        for of_model in nlls
    ]
    return [Score(total / tokens, tokens) for total in sums]
