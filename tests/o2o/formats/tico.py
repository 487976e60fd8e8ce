"""TICO's verifier: what `tico-circle verify` reports of a Circle file."""

from __future__ import annotations


def verifier_errors(data: bytes) -> list[str]:
    """Read a Circle file as TICO does and check its consistency.

    Args:
        data: The bytes of the file.

    Returns:
        The errors, one line each; empty for a consistent file.
    """
    from tico.circle import CircleDocument  # imports torch
    from tico.circle.verify import VerificationSeverity

    issues = CircleDocument.from_bytes(data).verify(raise_on_error=False).issues
    return [issue.format() for issue in issues if issue.severity is VerificationSeverity.ERROR]
