"""ONNX's Attention on LiteRT, compared with ONNX's reference evaluator."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest

from o2o.model import CUSTOM_DOMAIN
from tests.o2o.raising.evaluation import assert_same, feeds_of, parsed

QKV = "float[{B},4,{T},8] q, float[{B},2,{S},8] k, float[{B},2,{S},{H}] v"
CACHES = ", float[{B},2,5,8] pk, float[{B},2,5,{H}] pv"


def attention(
    attributes: str,
    operands: str = "q, k, v",
    more: str = "",
    B: int = 1,
    T: int = 3,
    S: int = 3,
    H: int = 8,
    outputs: str = "",
) -> onnx.ModelProto:
    sizes = {"B": B, "T": T, "S": S, "H": H, "P": S + 5}
    inputs = QKV + (CACHES if "pk" in operands else "") + more
    results = f"float[{B},4,{T},{H}] y" + outputs.format(**sizes)
    names = ", ".join(re.findall(r"\] (\w+)", results))
    options = f"<{attributes}>" if attributes else ""
    text = f"{names} = Attention {options} ({operands})"
    return parsed(inputs.format(**sizes), results, text, 25)


PRESENT = ", float[{B},2,{P},8] nk, float[{B},2,{P},{H}] nv"
CASES = {
    "all keys": attention(""),
    "causal with a past": attention("is_causal=1", "q, k, v, , pk, pv", outputs=PRESENT),
    "window": attention("is_causal=1, left_window_size=2", "q, k, v, , pk, pv", outputs=PRESENT),
    "window of both sides": attention("left_window_size=1, right_window_size=2", B=2, T=4, S=4),
    "soft-cap and a mask": attention("softcap=2.0, scale=0.5", "q, k, v, m", ", float[3,3] m"),
    "bool mask by head": attention("", "q, k, v, m", ", bool[1,4,3,3] m"),
    "short mask": attention("is_causal=1", "q, k, v, m, pk, pv", ", float[3,6] m", outputs=PRESENT),
    "valid keys": attention("is_causal=1", "q, k, v, , , , n", ", int64[1] n", S=9),
    "valid keys of each text": attention("is_causal=1", "q, k, v, , , , n", ", int64[2] n", B=2, S=9),
    "valid keys, all queries": attention("", "q, k, v, , , , n", ", int64[2] n", B=2, S=9),
    "other size of values": attention("is_causal=1", "q, k, v, , pk, pv", H=4, outputs=PRESENT),
}
for mode in range(4):
    scores = ", float[1,2,8,8] nk, float[1,2,8,8] nv, float[1,4,3,8] s"
    CASES[f"scores {mode}"] = attention(
        f"is_causal=1, softcap=3.0, qk_matmul_output_mode={mode}", "q, k, v, , pk, pv", outputs=scores
    )
CASES.pop("scores 0")  # the evaluator caps these scores, too
CORE = {
    "all keys",
    "causal with a past",
    "window",
    "soft-cap and a mask",
    "bool mask by head",
    "short mask",
    "valid keys",
}


@pytest.mark.parametrize("name", CASES)
def test_attention(name: str) -> None:
    proto = CASES[name]
    feeds = feeds_of(proto)
    if "n" in feeds:
        feeds["n"] = np.asarray([7, 4][: len(feeds["n"])])
    model = assert_same(proto, feeds)
    domains = {node.domain for node in model.graphs[0]}
    assert (CUSTOM_DOMAIN in domains) == (name in CORE)


def test_a_query_that_sees_no_key_gives_0() -> None:
    proto = attention("", "q, k, v, m", ", bool[3,3] m")
    mask = np.asarray([[1, 0, 1], [0, 0, 0], [1, 1, 1]], bool)
    assert_same(proto, {**feeds_of(proto), "m": mask})
    proto = attention("is_causal=1", "q, k, v, , , , n", ", int64[1] n", S=9)
    assert_same(
        proto, {**feeds_of(proto), "n": np.asarray([2])}
    )  # its first query is in front of the first key


def test_features_by_token() -> None:
    inputs = "float[1,3,32] q, float[1,3,16] k, float[1,3,16] v"
    assert_same(
        parsed(inputs, "float[1,3,32] y", "y = Attention <q_num_heads=4, kv_num_heads=2> (q, k, v)", 23)
    )
