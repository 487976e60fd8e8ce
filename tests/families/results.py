"""Results of cases, stored between runs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.families.cases import Case

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("export", "o2o", "runtime_py", "tests/families")


@dataclass
class Run:
    """A package on an engine.

    Attributes:
        road: The format, and int8 if its weights are quantized.
        engine: The engine.
        largest: The largest difference of a logit, in standard deviations of transformers' logits.
        rms: The largest root mean square of the differences of a text, in the same unit.
        error: Why it failed; empty if it did not.
    """

    road: str
    engine: str
    largest: float = 0.0
    rms: float = 0.0
    error: str = ""


@dataclass
class Result:
    """The result of a case.

    Attributes:
        name: The case's name.
        fused: How many attentions of the Circle model are one operator.
        attentions: How many attentions the Circle model has.
        runs: Each package on each of its engines.
        seconds: The time it took.
        error: Why nothing ran; empty if something did.
    """

    name: str
    fused: int = 0
    attentions: int = 0
    runs: list[Run] = field(default_factory=list)
    seconds: float = 0.0
    error: str = ""

    @property
    def largest(self) -> float:
        """The largest difference of a float32 logit, in standard deviations."""
        return max((run.largest for run in self.runs if "int8" not in run.road), default=0.0)

    @property
    def int8(self) -> float:
        """The largest root mean square of int8, in standard deviations."""
        return max((run.rms for run in self.runs if "int8" in run.road), default=0.0)

    @property
    def passed(self) -> bool:
        """Whether every run agrees, and every attention is one operator."""
        agree = bool(self.runs) and not any(run.error for run in self.runs)
        return agree and not self.error and self.fused == self.attentions > 0


def digest(case: Case) -> str:
    """Return a digest of everything that a result depends on.

    Args:
        case: The case.

    Returns:
        A hexadecimal number.
    """
    content = hashlib.sha256(repr(case).encode())
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            content.update(path.read_bytes())
    return content.hexdigest()


def store(folder: Path, case: Case, result: Result) -> None:
    """Write a result.

    Args:
        folder: Where results are.
        case: The case.
        result: Its result.
    """
    content = {"digest": digest(case)} | asdict(result)
    _file(folder, case).write_text(json.dumps(content, indent=1))


def stored(folder: Path, case: Case) -> Result | None:
    """Read a result.

    Args:
        folder: Where results are.
        case: The case.

    Returns:
        The result; None if there is none of the present sources.
    """
    try:
        content = json.loads(_file(folder, case).read_text())
    except (OSError, ValueError):
        return None
    if content.pop("digest", None) != digest(case):
        return None
    content["runs"] = [Run(**run) for run in content["runs"]]
    return Result(**content)


def _file(folder: Path, case: Case) -> Path:
    return folder / f"{case.name.replace(', ', '-').replace(' ', '-')}.json"
