"""What is printed, and what it comes to."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass, field


@dataclass
class Report:
    """Lines on stdout. `code` is the command's exit code: 0 if every verdict was good, else 1."""

    failed: list[str] = field(default_factory=list)
    verdicts: int = 0

    def __post_init__(self) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a terminal need not know every character

    def say(self, line: str = "") -> None:
        print(line, flush=True)

    def check(self, passed: bool, line: str) -> None:
        """A line of a check: what was found, with a mark whether that is good."""
        self.say(f"  {'✓' if passed else '✗'} {line}")

    def verdict(self, passed: bool, name: str) -> None:
        """`PASSED - name` or `FAILED - name`."""
        self.verdicts += 1
        if not passed:
            self.failed.append(name)
        self.say(f"{'✅ PASSED' if passed else '❌ FAILED'} - {name}")

    def total(self) -> None:
        """The last line: whether every verdict was good."""
        self.say("✓ ALL TESTS PASSED" if self.passed else f"✗ FAILED: {', '.join(self.failed)}")

    @property
    def passed(self) -> bool:
        return self.verdicts > 0 and not self.failed

    @property
    def code(self) -> int:
        return 0 if self.passed else 1
