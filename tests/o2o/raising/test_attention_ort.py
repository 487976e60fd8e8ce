"""The attention of com.microsoft, compared with ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from o2o.operators.reference import run_graph
from o2o.raising.operation import NotRaised
from tests.o2o.raising.onnx_runtime import model_of, operators, raised, results

N, K, H = 4, 2, 16
CORE = "circle.custom.o2o.attention"


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def angles(rows: int, size: int = H) -> list[np.ndarray]:
    x = np.arange(rows)[:, None] * (0.7 ** np.arange(size // 2))[None]
    return [np.cos(x).astype(np.float32), np.sin(x).astype(np.float32)]


def grouped(
    B: int, T: int, past: int, shared: int = 0, packed: bool = False, rotary: bool = False, **attributes: Any
) -> tuple[list, list, list[str]]:
    """GroupQueryAttention of T tokens behind `past` ones, in a cache of `shared` rows or one that grows."""
    q, k, v = numbers(B, T, N * H), numbers(B, T, K * H, seed=1), numbers(B, T, K * H, seed=2)
    if packed:
        q, k, v = np.concatenate([q, k, v], -1), None, None  # type: ignore[assignment]
    rows = shared or past
    caches = [numbers(B, K, rows, H, seed=seed) for seed in (3, 4)]
    if shared:
        for cache in caches:
            cache[:, :, past:] = 0
    total = past + T
    lengths, most = np.full(B, total - 1, np.int32), np.asarray(total, np.int32)
    extra = attributes.pop("extra", {})
    tables = angles(32) if rotary else [None, None]
    inputs = [q, k, v, *caches, lengths, most, *tables, *[extra.get(index) for index in range(9, 12)]]
    shape = [B, K, shared or total, H]
    model = model_of(
        "GroupQueryAttention",
        inputs,
        3,
        shapes={0: [B, T, N * H], 1: shape, 2: shape},
        num_heads=N,
        kv_num_heads=K,
        do_rotary=int(rotary),
        **attributes,
    )
    expected, actual, graph = results(model, inputs)
    for cache in (expected, actual):
        for index in (1, 2):
            cache[index] = cache[index][:, :, :total]
    return expected, actual, operators(graph)


@pytest.mark.parametrize(
    "case",
    [
        {"B": 1, "T": 1, "past": 5, "shared": 12},
        {"B": 1, "T": 3, "past": 0, "shared": 8, "rotary": True},
        {"B": 1, "T": 1, "past": 6, "packed": True, "rotary": True},
        {"B": 1, "T": 1, "past": 6, "rotary": True, "rotary_interleaved": 1},
        {"B": 2, "T": 1, "past": 4, "shared": 8, "rotary": True},
        {"B": 1, "T": 1, "past": 7, "shared": 8, "local_window_size": 3},
        {"B": 1, "T": 1, "past": 6, "shared": 8, "local_window_size": 3, "sliding_window_cache": 1},
        {"B": 1, "T": 1, "past": 7, "shared": 8, "softcap": 2.0, "scale": 0.5},
        {"B": 1, "T": 1, "past": 7, "shared": 8, "smooth_softmax": 1},
        {"B": 1, "T": 1, "past": 7, "shared": 8, "extra": {11: numbers(N)}},
    ],
    ids=str,
)
def test_group_query_attention(case: dict) -> None:
    expected, actual, names = grouped(**case)
    for x, y in zip(expected, actual, strict=True):
        np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-5)
    assert (CORE in names) == (case["B"] == 1)


def compare(op_type: str, inputs: list, outputs: int | list[bool], **attributes: Any) -> list[str]:
    """Compare one node with ONNX Runtime. Returns the raised operators."""
    model = model_of(op_type, inputs, outputs, **attributes)
    expected, actual, graph = results(model, inputs)
    for x, y in zip(expected, actual, strict=True):
        np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-5)
    return operators(graph)


def test_multi_head_attention_with_past_and_bias() -> None:
    q, k, v = (numbers(2, 3, N * H, seed=seed) for seed in range(3))
    past = [numbers(2, N, 5, H, seed=seed) for seed in (3, 4)]
    bias = numbers(3 * N * H, seed=5)
    added = numbers(1, N, 3, 8, seed=6)
    compare("MultiHeadAttention", [q, k, v, bias, None, added, *past], 3, num_heads=N)


@pytest.mark.parametrize("shape", [(1,), (1, 3)])
def test_multi_head_attention_key_padding(shape: tuple[int, ...]) -> None:
    q, k, v = (numbers(1, 3, N * H, seed=seed) for seed in range(3))
    mask = np.asarray([2], np.int32) if shape == (1,) else np.asarray([[1, 0, 1]], np.int32)
    names = compare("MultiHeadAttention", [q, k, v, None, mask], 1, num_heads=N, scale=0.3)
    assert CORE in names


def test_multi_head_attention_packed() -> None:
    packed = numbers(1, 4, N, 3, H)
    parts = [np.ascontiguousarray(packed[:, :, :, part]).reshape(1, 4, N * H) for part in range(3)]
    expected, _, _ = results(model_of("MultiHeadAttention", parts, 1, num_heads=N, unidirectional=1), parts)
    graph = raised(
        model_of("MultiHeadAttention", [packed], 1, num_heads=N, unidirectional=1)
    ).graph  # not on CPUs
    actual = run_graph(graph, {"x0": packed})
    np.testing.assert_allclose(actual["y0"], expected[0], rtol=1e-4, atol=1e-5)
    assert CORE in operators(graph)


@pytest.mark.parametrize("past", [0, 5])
def test_fused_attention(past: int) -> None:
    x, weights, bias = numbers(2, 3, 32), numbers(32, 3 * N * H, seed=1) / 8, numbers(3 * N * H, seed=2)
    cache = [numbers(2, 2, N, past, H, seed=3)] if past else []
    outputs = 2 if past else 1
    compare("Attention", [x, weights, bias, None, *cache], outputs, num_heads=N, unidirectional=1)


@pytest.mark.parametrize("mask", [[[1, 1, 0], [1, 0, 0]], [3, 2]], ids=["of keys", "lengths"])
def test_fused_attention_mask(mask: list) -> None:
    x, weights = numbers(2, 3, 32), numbers(32, 3 * N * H, seed=1) / 8
    compare("Attention", [x, weights, numbers(3 * N * H), np.asarray(mask, np.int32)], 1, num_heads=N)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"kv_num_heads": 5}, "heads"),
        ({"num_heads": 3}, "heads"),
    ],
)
def test_refused(attributes: dict, reason: str) -> None:
    inputs = [
        numbers(1, 1, N * H),
        *[numbers(1, 1, K * H)] * 2,
        None,
        None,
        np.zeros(1, np.int32),
        np.asarray(1, np.int32),
    ]
    model = model_of("GroupQueryAttention", inputs, 3, **{"num_heads": N, "kv_num_heads": K, **attributes})
    with pytest.raises(NotRaised, match=reason):
        raised(model)
