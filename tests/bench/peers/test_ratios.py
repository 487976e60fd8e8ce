from __future__ import annotations

from bench.peers.ratios import Spread, best, figures, ratios
from bench.peers.table import pairs, table
from bench.peers.targets import TARGETS
from bench.peers.variants import LLAMA_CPP, ORT_GENAI, THIS_PROJECT, VARIANTS, Variant

OURS, QUICK = Variant(THIS_PROJECT, "int8", 8, "litert"), Variant(THIS_PROJECT, "int4", 4, "litert")
THEIRS, OTHER = Variant(LLAMA_CPP, "Q8_0", 8), Variant(ORT_GENAI, "int4", 4)
A, B, C, D = (one.name for one in (OURS, QUICK, THEIRS, OTHER))

# The machine is three times as slow in the second round, which the ratios do not see.
ROUNDS = [
    {
        A: {"decode 128": 30.0, "load": 0.2, "memory": 2e9},
        C: {"decode 128": 20.0, "load": 0.1, "memory": 1e9},
    },
    {
        A: {"decode 128": 10.0, "load": 0.6, "memory": 2e9},
        C: {"decode 128": 6.25, "load": 0.3, "memory": 1e9},
    },
    {A: {"decode 128": 28.0}, B: {"decode 128": 29.0}, C: {}},
]


def test_ratios_are_of_one_round() -> None:
    assert ratios(ROUNDS, A, C, "decode 128") == Spread(1.55, 1.5, 1.6)
    assert ratios(ROUNDS, A, C, "load") == Spread(0.5, 0.5, 0.5)  # twice as long is half as good
    assert ratios(ROUNDS, A, D, "decode 128") is None
    assert ratios(ROUNDS, B, C, "decode 128") is None


def test_figures() -> None:
    assert figures(ROUNDS, A, "decode 128") == Spread(28, 10, 30)
    assert figures(ROUNDS, C, "prefill 128") is None
    assert str(Spread.of([1.0, 2.5, 1.234])) == "1.23 (1.00..2.50)"


def test_best() -> None:
    assert best(ROUNDS, [A, B], "decode 128") == B
    assert best(ROUNDS, [A, C], "load") == C
    assert best(ROUNDS, [B], "load") is None


def test_the_table() -> None:
    lines = list(
        table("15m", ROUNDS, [OURS, QUICK, THEIRS], {A: 1_500_000, B: 10**6, C: 2 * 10**6}, {A: 0.99})
    )
    assert [" ".join(line.split()) for line in lines] == [
        "",
        "15m, 3 rounds decode 128 load s peak MB file MB agrees",
        "this project int8 litert 28.0 (10.0..30.0) 0.40 (0.20..0.60) 2,000 (2,000..2,000) 1.5 0.990",
        "this project int4 litert 29.0 (29.0..29.0) - - 1.0 -",
        "llama.cpp Q8_0 13.1 (6.25..20.0) 0.20 (0.10..0.30) 1,000 (1,000..1,000) 2.0 -",
        "",
        "how many times as good decode 128 load s peak MB",
        "this project int8 litert / llama.cpp Q8_0 1.55 (1.50..1.60) 0.50 (0.50..0.50) 0.50 (0.50..0.50)",
        "this project's best / llama.cpp Q8_0 - 0.50 (0.50..0.50) 0.50 (0.50..0.50)",
    ]
    assert lines[1].index("decode 128") + len("decode 128") == lines[2].index(")") + 1  # right-aligned


def test_auto_is_compared_with_the_best_engine_of_the_same_weights() -> None:
    auto, onnx = Variant(THIS_PROJECT, "int8", 8, "auto"), Variant(THIS_PROJECT, "int8", 8, "onnx")
    rounds = [{A: {"decode 128": 20.0}, onnx.name: {"decode 128": 10.0}, auto.name: {"decode 128": 19.0}}]
    sizes = dict.fromkeys((A, B, onnx.name, auto.name), 1)
    lines = list(table("15m", rounds, [OURS, QUICK, onnx, auto], sizes, {}))
    assert " ".join(lines[-1].split()) == "this project int8 auto / its best engine 0.95 (0.95..0.95)"


def test_targets_are_told_where_they_were_measured() -> None:
    rounds = [
        {A: {"decode 128": 1.0, "load": 0.3, "memory": 130.0}, C: {"decode 128": 0.8}},
        {A: {"decode 128": 3.0, "load": 0.2, "memory": 130.0}, C: {"decode 128": 2.0}},
    ]
    lines = list(table("tinyllama-1.1b", rounds, [OURS, THEIRS], {A: 100, C: 100}, {}))
    assert [" ".join(line.split()) for line in lines[-4:]] == [
        "targets reached wanted",
        "decode 128: this project int8 litert to llama.cpp Q8_0 1.38 (1.25..1.50) 1.15",
        "load: this project int8 litert, s 0.25 (0.20..0.30) <= 0.3",
        "memory: this project int8 litert, of its file 1.30 (1.30..1.30) <= 1.3",
    ]
    slow = [{A: {"decode 128": 1.0}, C: {"decode 128": 1.0}}]
    assert list(table("tinyllama-1.1b", slow, [OURS, THEIRS], {A: 1, C: 1}, {}))[-1].endswith("1.15  missed")


def test_pairs() -> None:
    ratios_of_pairs = pairs(ROUNDS, [OURS, QUICK, THEIRS])
    assert ratios_of_pairs[0] == {
        "ours": A,
        "theirs": C,
        "measure": "decode 128",
        "median": 1.55,
        "low": 1.5,
        "high": 1.6,
    }
    assert [pair["measure"] for pair in ratios_of_pairs] == ["decode 128", "load", "memory"]


def test_targets_name_variants_that_are_measured() -> None:
    names = {(variant.name, shape) for variant in VARIANTS for shape in variant.shapes}
    precisions = {(one.precision, shape) for one in VARIANTS if one.ours for shape in one.shapes}
    for target in TARGETS:
        assert (target.theirs, target.shape) in names
        assert target.ours == "" or (target.ours, target.shape) in precisions
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS)
