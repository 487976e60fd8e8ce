"""TICO's verifier as a second opinion, in a process of its own: it imports torch."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator

from o2o.cli.extras import install_command
from o2o.errors import ModelError, O2oError
from o2o.streams import Source
from o2o.verifier.issue import Issue

_LINE = re.compile(r"(ERROR|WARNING) \[([^\]]+)\] (.*)")
_CHUNK = 1 << 22


def tico_issues(source: Source, model_format: str) -> Iterator[Issue]:
    """Run `tico-circle verify` on a file.

    Args:
        source: The file.
        model_format: Its format.

    Yields:
        Issues V401 and V402.

    Raises:
        O2oError: TICO is not installed.
        ModelError: The file is not Circle.
    """
    if importlib.util.find_spec("tico") is None:
        raise O2oError(f"--tico needs TICO: {install_command('export')}")
    if model_format != "circle":
        raise ModelError(f"{source.name}: TICO reads Circle, not {model_format}: leave out --tico")
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tico.circle.cli", "verify", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    text, _ = process.communicate(_bytes(source))
    lines = text.decode(errors="replace").splitlines()
    issues = [match for line in lines if (match := _LINE.match(line.strip()))]
    for match in issues:
        code = "V401" if match[1] == "ERROR" else "V402"
        yield Issue(code, f"{match[2]}: {match[3]}")
    if process.returncode and not issues:
        reason = next((line for line in reversed(lines) if line.strip()), "no message")
        yield Issue("V401", f"TICO cannot read it: {reason}")


def _bytes(source: Source) -> bytes:
    if (whole := source.unframed) is not None:
        return bytes(whole)
    assert source.size is not None
    return b"".join(source.chunks(0, source.size, _CHUNK))
