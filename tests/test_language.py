"""Rules for words in product code: identifiers, length of sentences, sections of docstrings."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ["export", "o2o", "runtime_py", "tinyllama"]
VAGUE = {
    "told",
    "tell",
    "untold",
    "ends",
    "found",
    "kept",
    "spelled",
    "made",
    "whom",
    "given_out",
    "turned",
    "said",
    "way",
    "whose",
    "lies",
    "asked",
}
"""Identifiers that do not name what the value is. `Conversation.say` is public: a user says something."""
VAGUE_WORD = re.compile(rf"\b_*(?:{'|'.join(sorted(VAGUE))})_*\b")
MAX_WORDS = 25
OVERRIDES = ("property", "cached_property", "functools.cached_property", "override", "typing.override")
DECLARED_ERRORS = ("ModelError", "UsageError", "OSError", "ValueError")


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def where(path: Path, line: int, what: str) -> str:
    return f"{path.relative_to(ROOT)}:{line}: {what}"


@pytest.mark.parametrize("package", PACKAGES)
def test_identifiers_name_the_value(package: str) -> None:
    vague = [
        where(path, token.start[0], token.string)
        for path in files(package)
        if VAGUE_WORD.search(text := path.read_text())
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.NAME and token.string.strip("_") in VAGUE
    ]
    assert vague == []


@pytest.mark.parametrize("package", PACKAGES)
def test_sentences_are_short(package: str) -> None:
    """In docstrings and in messages of one line."""
    long = [
        where(path, node.lineno, sentence)
        for path in files(package)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value
        for sentence in long_sentences(node.value)
    ]
    assert long == []


def long_sentences(text: str) -> Iterator[str]:
    """Yield the sentences of more than MAX_WORDS words. Code, tables and lists of flags are no sentences."""
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*] |\**\w+: |\w+:$))", text):
        lines = [line for line in paragraph.split("\n") if line.strip()]
        is_table = re.search(r"\S {2,}\S| \| ", paragraph)
        if is_table or all(re.match(r"\s{4,}|\s*\|", line) for line in lines):
            continue
        flat = re.sub(r"`[^`]*`", "X", " ".join(line.strip() for line in lines))
        for sentence in re.split(r"(?<=[.!?:;])\s+(?=[A-Z`\"(]|$)", flat):
            if len(re.findall(r"[A-Za-z0-9'_\-/]+", sentence)) > MAX_WORDS:
                yield sentence


@pytest.mark.parametrize("package", PACKAGES)
def test_public_functions_have_sections(package: str) -> None:
    missing = [
        where(path, function.lineno, f"{name}: {section}")
        for path in files(package)
        for name, function in public_functions(ast.parse(path.read_text()))
        for section in missing_sections(function)
    ]
    assert missing == []


def public_functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yield the public functions, and the public methods that have a docstring and are no properties."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for method in node.body:
                if not isinstance(method, ast.FunctionDef) or method.name.startswith("_"):
                    continue
                decorators = {ast.unparse(decorator) for decorator in method.decorator_list}
                if ast.get_docstring(method) is not None and not decorators & {*OVERRIDES}:
                    yield f"{node.name}.{method.name}", method


def missing_sections(function: ast.FunctionDef) -> Iterator[str]:
    """Yield the sections that the docstring lacks: `Args`, each argument, `Returns`, `Raises`."""
    doc = ast.get_docstring(function)
    if doc is None:
        yield "no docstring"
        return
    if re.match(r"(See|As) `", doc):
        return
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    names = [argument.arg for argument in arguments if argument.arg not in ("self", "cls")]
    if names and "Args:" not in doc:
        yield "Args"
    elif names:
        yield from (
            f"Args.{name}" for name in names if not re.search(rf"^\s*\*{{0,2}}{name}\b.*:", doc, re.M)
        )
    returns = "None" if function.returns is None else ast.unparse(function.returns)
    if returns not in ("None", "NoReturn") and not re.search(r"\b(Returns|Yields):", doc):
        yield "Returns"
    raised = [node.exc for node in ast.walk(function) if isinstance(node, ast.Raise) and node.exc is not None]
    called = [error.func if isinstance(error, ast.Call) else error for error in raised]
    if "Raises:" not in doc and any(ast.unparse(error).split(".")[-1] in DECLARED_ERRORS for error in called):
        yield "Raises"


def test_the_rules_find_what_they_forbid() -> None:
    assert list(long_sentences("A sentence of one word more than allowed " + "is long " * 9 + "."))
    assert not list(long_sentences("Short. " * 30))
    code = 'def f(x: int) -> int:\n    """Do."""\n    raise ValueError(x)\n'
    ((_, function),) = public_functions(ast.parse(code))
    assert list(missing_sections(function)) == ["Args", "Returns", "Raises"]
