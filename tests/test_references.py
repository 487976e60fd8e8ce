"""Every dotted name in the text of code and documents, such as `o2o.model.Model`, exists."""

from __future__ import annotations

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ("bench", "export", "o2o", "runtime_py", "tinyllama")
NAME = re.compile(rf"(?<![\w./-])(?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+(?![\w/(-]*\.(?:py|md)\b)")
NOT_CODE = {
    "o2o.attention",
    "o2o.causal_attention",
    "o2o.weight_dtype",
    "o2o.filters.MODULE",
    "o2o.nothing",
    "o2o.content",
    "o2o.conversations",
    "o2o.settings",
    "o2o.x",
    "runtime_py.engines.plain",
    "runtime_py.engines.plain.engine",
}
NOT_CODE |= {f"o2o.verbs.{group}" for group in ("build", "generate", "measure", "tools")}
"""An operator, metadata, a placeholder, names of what does not exist, groups of entry points, keys of a
browser's storage, an example."""
SUFFIXES = ("json", "md", "png", "py", "toml")


def texts(file: Path) -> Iterator[str]:
    """Comments and strings of Python; all of a document."""
    content = file.read_text()
    if file.suffix != ".py":
        yield content
        return
    for token in tokenize.generate_tokens(io.StringIO(content).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            yield token.string


@functools.cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def members(body: list[ast.stmt]) -> dict[str, ast.AST]:
    """What a module or class defines, imports or assigns, also to `self`."""
    result: dict[str, ast.AST] = {}
    for node in (inner for statement in body for inner in ast.walk(statement)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            result.setdefault(node.name, node)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            result |= {(alias.asname or alias.name): node for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            result[node.id] = node
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            result[node.attr] = node
    return result


@functools.cache
def exists(name: str) -> bool:
    place, parts = ROOT, name.split(".")
    while parts and (place / parts[0]).is_dir():
        place /= parts.pop(0)
    file = place / "__init__.py"
    if parts and (place / f"{parts[0]}.py").is_file():
        file = place / f"{parts.pop(0)}.py"
    if not parts:
        return True
    body = tree(file).body if file.is_file() else []
    for part in parts:
        node = members(body).get(part)
        if node is None:
            return False
        body = node.body if isinstance(node, ast.ClassDef) else []
    return True


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("o2o.model", True),
        ("o2o.model.Model.locate", True),
        ("o2o.model.Model.nothing", False),
        ("o2o.nothing", False),
        ("runtime_py.package.Package", True),
    ],
)
def test_exists(name: str, expected: bool) -> None:
    assert exists(name) is expected


def wrong_names(text: str) -> Iterator[str]:
    for name in NAME.findall(text):
        if name not in NOT_CODE and name.rpartition(".")[2] not in SUFFIXES and not exists(name):
            yield name


@pytest.mark.parametrize("folder", [*PACKAGES, "tests", "docs", "."])
def test_names_in_text_exist(folder: str) -> None:
    pattern = "*.md" if folder == "." else "**/*.*"
    files = [file for file in (ROOT / folder).glob(pattern) if file.suffix in (".md", ".py")]
    assert files
    wrong = {
        f"{file.relative_to(ROOT)}: {name}"
        for file in files
        if file != Path(__file__)
        if any(wrong_names(file.read_text()))  # else no part of it has any: parts take long to find
        for text in texts(file)
        for name in wrong_names(text)
    }
    assert not wrong, "\n".join(sorted(wrong))
