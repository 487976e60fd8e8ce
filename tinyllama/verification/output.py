"""Console report and exit code."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass, field


@dataclass
class Report:
    """Lines on stdout. `code` is the command's exit code: 0 if every test passed, else 1."""

    failed: list[str] = field(default_factory=list)
    verdicts: int = 0

    def __post_init__(self) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a terminal may lack characters

    def write(self, line: str = "") -> None:
        """Print a line.

        Args:
            line: The text.
        """
        print(line, flush=True)

    def check(self, passed: bool, line: str) -> None:
        """Print the result of one check with a mark.

        Args:
            passed: Whether the check passed.
            line: The result.
        """
        self.write(f"  {'✓' if passed else '✗'} {line}")

    def verdict(self, passed: bool, name: str) -> None:
        """Print `PASSED - name` or `FAILED - name`, and count it.

        Args:
            passed: Whether the test passed.
            name: The test's name.
        """
        self.verdicts += 1
        if not passed:
            self.failed.append(name)
        self.write(f"{'✅ PASSED' if passed else '❌ FAILED'} - {name}")

    def total(self) -> None:
        """Print the last line: whether every test passed."""
        self.write("✓ ALL TESTS PASSED" if self.passed else f"✗ FAILED: {', '.join(self.failed)}")

    @property
    def passed(self) -> bool:
        return self.verdicts > 0 and not self.failed

    @property
    def code(self) -> int:
        return 0 if self.passed else 1
