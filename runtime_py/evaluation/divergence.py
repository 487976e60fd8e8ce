"""Divergence of two models: how far apart their predictions of the same tokens are.

The KL divergence of a distribution q from a reference p is the sum of p (log p - log q), in nats. Both
models read the same ids, as `llama-perplexity --kl-divergence` of llama.cpp does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from o2o.errors import ModelError
from runtime_py.engines.engine import EngineSession
from runtime_py.generation.scoring import check_text, log_probability_rows


@dataclass(frozen=True)
class Divergence:
    """The figures of each predicted token, of all documents.

    Attributes:
        kl: The KL divergence of the other model from the reference in nats, float64 [tokens].
        same_top: Whether both models have the same most likely token, bool [tokens].
        nlls: The negative log-likelihoods of the reference and of the other model, by document.
    """

    kl: np.ndarray
    same_top: np.ndarray
    nlls: tuple[list[np.ndarray], list[np.ndarray]]

    @property
    def mean(self) -> float:
        """The mean KL divergence in nats."""
        return float(self.kl.mean())

    @property
    def percentile_99(self) -> float:
        """The KL divergence in nats that 99 % of the tokens do not exceed."""
        return float(np.percentile(self.kl, 99))

    @property
    def top1_agreement(self) -> float:
        """The share of tokens with the same most likely token, from 0 to 1."""
        return float(self.same_top.mean())


def compare_predictions(
    reference: EngineSession,
    other: EngineSession,
    documents: Sequence[Sequence[int]],
    advance: Callable[[int], None] = lambda tokens: None,
) -> Divergence:
    """Let two models predict the same documents.

    Args:
        reference: A session of the reference.
        other: A session of the other model.
        documents: The ids of each document. The smaller capacity cuts a longer one.
        advance: Called with the number of tokens of each document when it is read.

    Returns:
        The figures.

    Raises:
        ModelError: The numbers of logits differ, logits are not finite, an id is not below V, or a token has
            the probability 0.
        UsageError: An id is negative or no integer.
    """
    if reference.vocab_size != other.vocab_size:
        raise ModelError(
            f"one model has {reference.vocab_size} logits, the other {other.vocab_size}: their predictions "
            "cannot be compared"
        )
    limit = min(reference.capacity, other.capacity) + 1
    rows = []
    for ids in documents:
        rows.append([*_rows(reference, other, check_text(ids[:limit], reference))])
        advance(len(ids))
    tokens = np.array([row for of_document in rows for row in of_document])
    if not np.isfinite(tokens).all():
        raise ModelError("a token of the dataset, or one that the reference predicts, has the probability 0")
    nlls = [[np.array([row[column] for row in of_document]) for of_document in rows] for column in (2, 3)]
    return Divergence(tokens[:, 0], tokens[:, 1].astype(bool), (nlls[0], nlls[1]))


def _rows(
    reference: EngineSession, other: EngineSession, ids: Sequence[int]
) -> Iterator[tuple[float, bool, float, float]]:
    """For each predicted token its KL divergence, whether the top tokens agree, and both -log p."""
    pairs = zip(log_probability_rows(reference, ids), log_probability_rows(other, ids), strict=True)
    for token, (log_p, log_q) in zip(ids[1:], pairs, strict=True):
        p = np.exp(log_p)
        seen = p > 0  # 0 log 0 is 0
        kl = float((p[seen] * (log_p[seen] - log_q[seen])).sum())
        yield max(kl, 0.0), bool(log_p.argmax() == log_q.argmax()), -log_p[token], -log_q[token]
