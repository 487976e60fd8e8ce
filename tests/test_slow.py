"""`tests.slow` names tests that exist, and leaves some of every package to `make test-fast`."""

from __future__ import annotations

import ast

import pytest

from tests import slow
from tests.conftest import ROOT


@pytest.mark.parametrize("file", [*slow.FILES, *slow.TESTS])
def test_every_file_exists(file: str) -> None:
    assert (ROOT / file).is_file()


@pytest.mark.parametrize("file", slow.TESTS)
def test_every_test_exists(file: str) -> None:
    tree = ast.parse((ROOT / file).read_text())
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert set(slow.TESTS[file]) <= functions


@pytest.mark.parametrize("package", ["export", "o2o", "runtime_py", "tinyllama"])
def test_every_package_has_quick_tests(package: str) -> None:
    """Also each of its folders that has tests."""
    folders = {path.parent for path in (ROOT / "tests" / package).rglob("test_*.py")}
    for folder in folders:
        files = {path.relative_to(ROOT).as_posix() for path in folder.glob("test_*.py")}
        assert files - set(slow.FILES), f"{folder}: all tests are slow"
