"""Causal attention in torch: all scores at a time, or blocks of them with an online softmax."""

from __future__ import annotations

import torch


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, position: int, scale: float) -> torch.Tensor:
    """softmax(scale q k') v, [B, T, N, H]; query t sees the keys 0 to `position` + t.

    q: [B, N, T, H]. k, v: [B, K, S, H]; query head n reads key head n / (N / K).
    """
    q = _grouped(q, k) * scale
    seen = _seen(q.shape[3], k.shape[2], position, 0, q.device)
    scores = (q @ k[:, :, None].transpose(-1, -2)).masked_fill(~seen, -torch.inf)
    return _joined(scores.softmax(-1) @ v[:, :, None])


def flash_attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    position: int,
    scale: float,
    q_block: int,
    kv_block: int,
) -> torch.Tensor:
    """As `attend`, from blocks of q_block by kv_block scores, none of which the causal mask would empty."""
    q = _grouped(q, k) * scale
    T, S = q.shape[3], k.shape[2]
    parts = []
    for first in range(0, T, q_block):
        rows = q[:, :, :, first : first + q_block]
        last = position + first + rows.shape[3]  # keys from here on are hidden from all of these queries
        total = torch.zeros_like(rows)
        weight = rows.new_zeros(*rows.shape[:-1], 1)
        highest = rows.new_full(weight.shape, -torch.inf)
        for begin in range(0, min(S, last), kv_block):
            keys, values = (x[:, :, None, begin : begin + kv_block] for x in (k, v))
            scores = rows @ keys.transpose(-1, -2)
            seen = _seen(rows.shape[3], keys.shape[3], position + first, begin, q.device)
            scores = scores.masked_fill(~seen, -torch.inf)
            new = torch.maximum(highest, scores.amax(-1, keepdim=True))
            shrink, exps = (highest - new).exp(), (scores - new).exp()
            total = total * shrink + exps @ values
            weight = weight * shrink + exps.sum(-1, keepdim=True)
            highest = new
        parts.append(total / weight)
    return _joined(torch.cat(parts, 3))


def _grouped(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """[B, N, T, H] -> [B, K, G, T, H]."""
    return q.unflatten(1, (k.shape[1], -1))


def _joined(y: torch.Tensor) -> torch.Tensor:
    """[B, K, G, T, H] -> [B, T, N, H]."""
    return y.flatten(1, 2).transpose(1, 2).contiguous()


def _seen(T: int, S: int, position: int, begin: int, device: torch.device) -> torch.Tensor:
    """Which keys, numbered from `begin`, each query sees, the first of which stands at `position`: [T, S]."""
    keys = torch.arange(begin, begin + S, device=device)
    return keys <= position + torch.arange(T, device=device)[:, None]
