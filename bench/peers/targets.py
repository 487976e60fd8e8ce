"""Performance targets of this project, by shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.peers.ratios import Round, Spread, best, figures, ratios


@dataclass(frozen=True)
class Target:
    """A ratio to a peer.

    Attributes:
        shape: The shape.
        measure: The measure.
        ours: A precision of this project; "" for the best.
        theirs: A peer's variant.
        value: The lowest accepted ratio.
    """

    shape: str
    measure: str
    ours: str
    theirs: str
    value: float


@dataclass(frozen=True)
class Limit:
    """An upper limit of a measurement.

    Attributes:
        shape: The shape.
        measure: The measure.
        ours: A precision of this project.
        value: The highest accepted value.
        of_file: The unit is the size of the model's file.
    """

    shape: str
    measure: str
    ours: str
    value: float
    of_file: bool = False


BIG = "tinyllama-1.1b"
TARGETS = (
    Target(BIG, "decode 128", "int8", "llama.cpp Q8_0", 1.15),
    Target(BIG, "decode 512", "int8", "llama.cpp Q8_0", 1.15),
    Target(BIG, "decode 128", "int4", "llama.cpp Q4_0", 1.1),
    Target(BIG, "decode 512", "int4", "llama.cpp Q4_0", 1.1),
    Target(BIG, "prefill 128", "int8", "llama.cpp Q8_0", 2.3),
    Target(BIG, "prefill 512", "int8", "llama.cpp Q8_0", 2.3),
    Target("135m", "decode 128", "int8", "llama.cpp Q8_0", 1.1),
    Target("135m", "decode 512", "int8", "llama.cpp Q8_0", 1.1),
    Target("15m", "decode 128", "", "onnxruntime-genai int4", 1.0),
    Target("15m", "decode 512", "", "onnxruntime-genai int4", 1.0),
)
LIMITS = (
    Limit(BIG, "load", "int8", 0.3),
    Limit(BIG, "memory", "int8", 1.3, of_file=True),
)


def target_rows(
    shape: str, rounds: Sequence[Round], ours: Mapping[str, str], sizes: Mapping[str, int]
) -> list[list[str]]:
    """Compare the measurements of a shape with its targets.

    Args:
        shape: The shape.
        rounds: The rounds.
        ours: The precision of each variant of this project.
        sizes: Bytes of each variant's model.

    Returns:
        A table row for each target that was measured.
    """
    rows = []
    for target in TARGETS:
        if target.shape != shape:
            continue
        among = [name for name, precision in ours.items() if target.ours in ("", precision)]
        chosen = best(rounds, among, target.measure)
        reached = chosen and ratios(rounds, chosen, target.theirs, target.measure)
        if chosen and reached:
            what = f"{target.measure}: {chosen} to {target.theirs}"
            rows.append(_row(what, reached, f"{target.value:g}", reached.median >= target.value))
    for limit in LIMITS:
        if limit.shape != shape:
            continue
        chosen = best(rounds, [name for name, p in ours.items() if p == limit.ours], limit.measure)
        spread = chosen and figures(rounds, chosen, limit.measure)
        if chosen and spread:
            part = sizes[chosen] if limit.of_file else 1
            reached = Spread(*(value / part for value in (spread.median, spread.low, spread.high)))
            unit = "of its file" if limit.of_file else "s"
            what = f"{limit.measure}: {chosen}, {unit}"
            rows.append(_row(what, reached, f"<= {limit.value:g}", reached.median <= limit.value))
    return rows


def _row(what: str, reached: Spread, wanted: str, yes: bool) -> list[str]:
    return [what, str(reached), wanted, "" if yes else "missed"]
