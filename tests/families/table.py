"""The table of families in the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.families.cases import Case
from tests.families.results import ROOT, Result

PAGE = ROOT / "docs" / "families.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
ENGINES = {"litert": "LiteRT", "onnx": "ONNX Runtime"}


def table(cases: Sequence[Case], results: Sequence[Result]) -> str:
    """Format results.

    Args:
        cases: The cases.
        results: The result of each.

    Returns:
        A table in Markdown.
    """
    lines = [
        "| family | `model_type` | attentions as one operator | engines | float32, largest | int8, rms |",
        "|---|---|---|---|---|---|",
    ]
    for case, result in zip(cases, results, strict=True):
        engines = ", ".join(
            name
            for engine, name in ENGINES.items()
            if not any(run.error for run in result.runs if run.engine == engine) and not result.error
        )
        lines.append(
            f"| {case.name} | `{case.model_type}` | {result.fused} of {result.attentions} | {engines} | "
            f"{result.largest:.0e} | {result.int8:.2f} |"
        )
    return "\n".join(lines) + "\n"


def write(cases: Sequence[Case], results: Sequence[Result], page: Path = PAGE) -> None:
    """Replace the table of the page.

    Args:
        cases: The cases.
        results: The result of each.
        page: The page, which has lines that begin and end the table.
    """
    text = page.read_text()
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    page.write_text(before + BEGIN + "\n" + table(cases, results) + "\n" + END + after)
