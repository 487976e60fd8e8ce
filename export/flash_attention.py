"""Causal attention in torch: all scores at once, or blocks of them with an online softmax."""

from __future__ import annotations

import torch


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, position: int, scale: float) -> torch.Tensor:
    """Compute softmax(scale q k') v; query t sees the keys 0 to `position` + t.

    Args:
        q: [B, N, T, H].
        k: [B, K, S, H]. Query head n reads key head n / (N / K).
        v: [B, K, S, H].
        position: The position of the first query.
        scale: The factor of the scores.

    Returns:
        [B, T, N, H].
    """
    q = _group_heads(q, k) * scale
    visible = _causal_mask(q.shape[3], k.shape[2], position, 0, q.device)
    scores = (q @ k[:, :, None].transpose(-1, -2)).masked_fill(~visible, -torch.inf)
    return _merge_heads(scores.softmax(-1) @ v[:, :, None])


def flash_attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    position: int,
    scale: float,
    q_block: int,
    kv_block: int,
) -> torch.Tensor:
    """As `attend`, in blocks of `q_block` by `kv_block` scores. Blocks that the mask hides are skipped."""
    q = _group_heads(q, k) * scale
    T, S = q.shape[3], k.shape[2]
    parts = []
    for first in range(0, T, q_block):
        rows = q[:, :, :, first : first + q_block]
        last = position + first + rows.shape[3]  # keys from here on are masked for these queries
        total = torch.zeros_like(rows)
        weight = rows.new_zeros(*rows.shape[:-1], 1)
        highest = rows.new_full(weight.shape, -torch.inf)
        for begin in range(0, min(S, last), kv_block):
            keys, values = (x[:, :, None, begin : begin + kv_block] for x in (k, v))
            scores = rows @ keys.transpose(-1, -2)
            visible = _causal_mask(rows.shape[3], keys.shape[3], position + first, begin, q.device)
            scores = scores.masked_fill(~visible, -torch.inf)
            new = torch.maximum(highest, scores.amax(-1, keepdim=True))
            shrink, exps = (highest - new).exp(), (scores - new).exp()
            total = total * shrink + exps @ values
            weight = weight * shrink + exps.sum(-1, keepdim=True)
            highest = new
        parts.append(total / weight)
    return _merge_heads(torch.cat(parts, 3))


def _group_heads(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """[B, N, T, H] -> [B, K, G, T, H]."""
    return q.unflatten(1, (k.shape[1], -1))


def _merge_heads(y: torch.Tensor) -> torch.Tensor:
    """[B, K, G, T, H] -> [B, T, N, H]."""
    return y.flatten(1, 2).transpose(1, 2).contiguous()


def _causal_mask(T: int, S: int, position: int, begin: int, device: torch.device) -> torch.Tensor:
    """Causal mask [T, S] of queries from `position` on and keys from `begin` on."""
    keys = torch.arange(begin, begin + S, device=device)
    return keys <= position + torch.arange(T, device=device)[:, None]
