"""Each message that the page of troubleshooting quotes exists in the code."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text().partition("## Wrong or slow results")[0]
MESSAGES = re.findall(r"^\| `([^`]+)` \|", PAGE, re.M)
PACKAGES = ("export", "o2o", "runtime_py", "tinyllama")
VARIABLE = "\0"


def flat(node: ast.expr) -> str:
    """A string as it is in the code; what is formatted into it is VARIABLE."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(flat(value) for value in node.values)
    if isinstance(node, ast.BinOp):
        return flat(node.left) + flat(node.right)
    return VARIABLE


@cache
def strings() -> list[str]:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    nodes = (node for path in files for node in ast.walk(ast.parse(path.read_text())))
    return [flat(node) for node in nodes if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp)]


def exists(message: str) -> bool:
    """Whether a string of the code has the parts between the dots of a message, in this order."""
    parts = [re.escape(part) for part in message.split("...") if part.strip(" :()")]
    pattern = re.compile(".*".join(parts), re.S)
    return any(pattern.search(string) for string in strings())


@pytest.mark.parametrize("message", MESSAGES)
def test_a_quoted_message_exists(message: str) -> None:
    assert exists(message)


def test_there_are_messages_and_others_do_not_exist() -> None:
    assert len(MESSAGES) > 30
    assert not exists("... has no such ...: a message that no code prints")
