"""What all commands have in common: flags in two spellings, and an end at SIGINT from their first line on."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from o2o import filters
from o2o.cli.arguments import Parser
from tests.conftest import ROOT

PACKAGES = ("export", "o2o", "runtime_py", "tinyllama")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def guards(path: Path) -> list[ast.stmt]:
    text = path.read_text()
    return [node for node in ast.parse(text).body if is_main_guard(node)] if "__main__" in text else []


LIGHT = ("__future__", "argparse", "collections", "pathlib", "typing", "o2o")

MAINS = [path for path in SOURCES if guards(path)]


@pytest.mark.parametrize("path", MAINS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_command_ends_at_sigint_before_it_imports_anything_slow(path: Path) -> None:
    """Its first block for `__main__` calls `exit_on_interrupt`. Only light modules are imported before."""
    guard = guards(path)[0]
    assert "exit_on_interrupt(" in ast.unparse(guard)
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.lineno < guard.lineno:
            assert (node.module or "").split(".")[0] in LIGHT


def parsers() -> Iterator[tuple[str, Callable[[], Parser]]]:
    for name in filters.names():
        yield name, lambda name=name: filters.load(name)().parser()  # type: ignore[misc]
    for path in MAINS:
        text = path.read_text()
        if "Parser" in text or "parser" in text:
            yield str(path.relative_to(ROOT)), lambda path=path: parser_of(path)  # type: ignore[misc]


def parser_of(path: Path) -> Parser:
    """The parser that the command makes for its arguments."""
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    made: list[Parser] = []

    def record(self: Parser, *_: object, **__: object) -> None:
        made.append(self)
        raise SystemExit(0)

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(SystemExit):
        patch.setattr(Parser, "parse_known_args", record)
        module.main(["--help"])
    (parser,) = made
    return parser


def case(name: str, make: Callable[[], Parser]) -> ParameterSet:
    """A test, which is slow for a script that imports torch with its own modules."""
    text = (ROOT / name).read_text() if name.endswith(".py") else ""
    marks = [pytest.mark.slow] if re.search(r"^import torch", text, re.M) else []
    return pytest.param(name, make, id=name, marks=marks)


@pytest.mark.parametrize(("name", "make"), [case(*pair) for pair in parsers()])
def test_every_flag_has_two_spellings(name: str, make: Callable[[], Parser]) -> None:
    parser = make()
    assert isinstance(parser, Parser)
    for action in parser._actions:
        for flag in action.option_strings:
            if not flag.startswith("--"):
                continue
            for spelling in (flag, "--" + flag[2:].replace("_", "-"), "--" + flag[2:].replace("-", "_")):
                assert parser.canonical([spelling]) == [flag]
                assert parser.canonical([f"{spelling}=a-b_c"]) in ([f"{flag}=a-b_c"], [flag, "a-b_c"])
            if action.nargs in ("+", "*"):
                assert parser.canonical([flag, "a,b", "c", "-x"]) == [flag, "a", "b", "c", "-x"]


# ---- commands that texts name --------------------------------------------------------------------------

TEXTS = [*SOURCES, *ROOT.glob("*.md"), ROOT / "Makefile", *(ROOT / "docs").rglob("*.md")]
TEXTS += [path for folder in ("tinyllama", "bench") for path in (ROOT / folder).rglob("*.md")]
TEXTS += sorted((ROOT / "bench").rglob("*.py"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
FILTER_COMMANDS = {filters.load(name).name for name in filters.names()}
FILTER_COMMANDS |= {"remove.reshape.py", *filters.OLDER_NAMES}  # the example of docs/adding.md


def texts(path: Path) -> Iterator[str]:
    """The strings of a Python file, its comments and docstrings included; the whole of another file."""
    text = path.read_text()
    if path.suffix != ".py":
        yield text
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            yield token.string


def unknown_commands(text: str) -> Iterator[str]:
    """Filters, modules of `python -m` and targets of `make` in `text` that do not exist."""
    for name in re.findall(r"(?<![\w./*{}-])[a-z]\w*(?:\.\w+)+\.py\b(?!\w)", text):
        if name not in FILTER_COMMANDS:
            yield name
    for module in re.findall(r"python3? -m ([\w.]+)", text):
        if module.split(".")[0] in PACKAGES and not is_runnable(module.rstrip(".")):
            yield f"python -m {module}"
    for target in re.findall(r"(?:`|^ {4})make ([a-z-]+)", text, re.M):
        if target not in TARGETS:
            yield f"make {target}"


def is_runnable(module: str) -> bool:
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_that_is_named_exists(path: Path) -> None:
    """In messages, help, docstrings, comments and documentation."""
    if any(unknown_commands(path.read_text())):  # else no part of it has any: parts take long to find
        assert not [name for text in texts(path) for name in unknown_commands(text)]


def test_unknown_commands_are_found() -> None:
    text = "run `bucket.caches.py`, python -m o2o.nothing, and\n    make nothing\nor `make test`, gc.py"
    assert list(unknown_commands(text)) == ["bucket.caches.py", "python -m o2o.nothing", "make nothing"]
