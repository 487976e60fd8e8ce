"""The core of attention in torch: all scores at once, or blocks of them with an online softmax."""

from __future__ import annotations

import torch

from o2o.operators.masks import LOWEST


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    position: int,
    scale: float,
    q_block: int = 0,
    kv_block: int = 0,
    *,
    mask: torch.Tensor | None = None,
    slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    softcap: float = 0.0,
    window: int = 0,
) -> torch.Tensor:
    """Compute the core of attention; see `o2o.operators.core_attention`. Hidden blocks are skipped.

    Args:
        q: [B, N, T, H].
        k: [B, K, S, H]. Query head n reads key head n / (N / K).
        v: [B, K, S, H].
        position: The position of the first query.
        scale: The factor of the scores.
        q_block: Queries of a block; 0 for all.
        kv_block: Keys of a block; 0 for all.
        mask: Added to the scores, instead of causality and window; broadcast to [B, N, T, S].
        slopes: ALiBi's slope of each head, [N].
        sinks: One more logit of each head, [N].
        softcap: The bound of the scores; 0 for none.
        window: The number of keys that a query sees at most; 0 for all.

    Returns:
        [B, T, N, H].
    """
    (_, N, T, _), (_, K, S, _) = q.shape, k.shape
    groups = q.unflatten(1, (K, -1)) * scale  # [B, K, G, T, H]
    if mask is not None:
        mask = mask.expand(q.shape[0], N, T, S).unflatten(1, (K, -1))
    per_head = (K, N // K, 1, 1)

    def scores_of(rows: torch.Tensor, first: int, start: int, columns: int) -> torch.Tensor:
        """Scores [B, K, G, number of rows, columns] of queries from `first` on and keys from `start` on."""
        count = rows.shape[3]
        scores = rows @ k[:, :, None, start : start + columns].transpose(-1, -2)
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        distance = _distance(count, scores.shape[-1], position + first, start, q.device)
        if slopes is not None:
            scores = scores + slopes.reshape(per_head) * distance
        if mask is not None:
            return scores + mask[..., first : first + count, start : start + columns]
        is_hidden = distance > 0
        is_hidden = is_hidden | (distance <= -window) if window else is_hidden
        return scores.masked_fill(is_hidden, LOWEST)

    if not (q_block and kv_block):
        scores = scores_of(groups, 0, 0, S)
        if sinks is not None:
            scores = torch.cat([scores, sinks.reshape(per_head).expand(*scores.shape[:-1], 1)], -1)
        return _merge_heads(scores.softmax(-1)[..., :S] @ v[:, :, None])
    parts = []
    for first in range(0, T, q_block):
        rows = groups[:, :, :, first : first + q_block]
        total = torch.zeros_like(rows)
        weight = rows.new_zeros(*rows.shape[:-1], 1)
        highest = rows.new_full(weight.shape, LOWEST)
        if sinks is not None:
            weight, highest = weight + 1, sinks.reshape(per_head).expand(weight.shape)
        begin, end = 0, S
        if mask is None:
            end = min(S, position + first + rows.shape[3])
            begin = max(0, position + first - window + 1) // kv_block * kv_block if window else 0
        for start in range(begin, end, kv_block):
            scores = scores_of(rows, first, start, kv_block)
            new = torch.maximum(highest, scores.amax(-1, keepdim=True))
            shrink, exps = (highest - new).exp(), (scores - new).exp()
            total = total * shrink + exps @ v[:, :, None, start : start + kv_block]
            weight = weight * shrink + exps.sum(-1, keepdim=True)
            highest = new
        parts.append(total / weight)
    return _merge_heads(torch.cat(parts, 3))


def _merge_heads(y: torch.Tensor) -> torch.Tensor:
    """[B, K, G, T, H] -> [B, T, N, H]."""
    return y.flatten(1, 2).transpose(1, 2).contiguous()


def _distance(T: int, S: int, position: int, begin: int, device: torch.device) -> torch.Tensor:
    """The distance [T, S] of each key from each query: keys from `begin` on, queries from `position` on."""
    keys = torch.arange(begin, begin + S, device=device)
    return keys - (position + torch.arange(T, device=device)[:, None])
