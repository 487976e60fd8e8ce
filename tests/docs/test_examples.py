"""Examples in README and docs: commands and flags exist, Python compiles, its names exist, JSON is valid."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import tomllib
from pathlib import Path

import pytest

from docs.tools.examples import PAGES, Block, all_blocks, blocks, simple_commands
from docs.tools.run_examples import PLACEHOLDERS, script_of
from o2o import filters, verbs
from o2o.errors import UsageError
from tests import schemas
from tests.conftest import ROOT

COMMANDS = [
    pytest.param(command, id=f"{block.place}: {command[:60]}")
    for block in all_blocks("sh")
    for command in block.commands
    if block.page != "docs/adding.md"  # its commands use what it adds: `make docs-test` runs them
]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
VARIABLES = set(re.findall(r"^([A-Z_]+) *\?=", (ROOT / "Makefile").read_text(), re.M))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def check_command(words: list[str]) -> None:
    """Fail if a simple command does not exist, or does not take its flags."""
    name, *rest = words
    if name == "o2o" and rest and (verb := verbs.find(rest[0])) is not None:
        parser = verb.parser()
        parser.parse_args(parser.canonical(rest[1:]))  # type: ignore[attr-defined]
    elif name == "o2o" and rest and rest[0].startswith("-"):
        assert rest in (["--help"], ["--version"])
    elif name == "o2o" or filters.find(name) is not None:
        module = filters.find(rest.pop(0) if name == "o2o" else name)
        assert module is not None, words
        filter_ = filters.load(module)()
        parser = filter_.parser()
        filter_.parse(parser, parser.canonical(rest))
    elif name == "make":
        targets = [word for word in rest if "=" not in word]
        assert set(targets) <= TARGETS
        assert {word.partition("=")[0] for word in rest} - set(targets) <= VARIABLES
    elif name == "pip":
        for extra in re.findall(r"\[([\w,-]+)\]", " ".join(rest)):
            assert set(extra.split(",")) <= set(EXTRAS)
    elif name in ("python", "python3"):
        check_python(rest)
    else:
        assert name in ("source", "cd", "git"), words


def check_python(words: list[str]) -> None:
    if words[0] == "-m":
        place, rest = ROOT.joinpath(*words[1].split(".")), words[2:]
        assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), words
        module = importlib.import_module(words[1]) if words[1].startswith("runtime_py.") else None
        if module is not None and hasattr(module, "parser"):
            module.parser().parse_args(module.parser().canonical(rest))
    else:
        name = words[0].removeprefix(".../")
        assert (ROOT / name).is_file() or (ROOT / "tinyllama" / name).is_file(), words


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_exists_and_takes_its_flags(command: str) -> None:
    for words in simple_commands(command):
        check_command(words)


@pytest.mark.parametrize(
    "command",
    ["o2o convret x -o y", "o2o run --nothing x", "gc.py --nothing", "make nothing", "pip install '.[no]'"],
)
def test_a_wrong_command_fails(command: str) -> None:
    with pytest.raises((AssertionError, SystemExit, UsageError)):
        check_command(next(simple_commands(command)))


@pytest.mark.parametrize("block", all_blocks("diff"), ids=lambda block: block.place)
def test_a_change_fits_its_file(block: Block) -> None:
    before, after = block.change
    assert (ROOT / block.title).read_text().count(before) == 1
    assert before != after


@pytest.mark.parametrize("block", all_blocks("python"), ids=lambda block: block.place)
def test_python_compiles_and_its_names_exist(block: Block) -> None:
    tree = ast.parse(block.text)
    new = {b.title.removesuffix(".py").replace("/", ".") for b in all_blocks("python") if b.title}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module not in new:
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                assert importlib.util.find_spec(alias.name)


@pytest.mark.parametrize("block", all_blocks("json"), ids=lambda block: block.place)
def test_json_is_json(block: Block) -> None:
    content = json.loads(block.text)
    if isinstance(content, dict) and "signatures" in content:
        schemas.validator("contract").validate(content)
    if isinstance(content, list):
        schemas.validator("history").validate(content)


def test_blocks_that_are_not_run_have_a_reason() -> None:
    found = [block for page in PAGES for block in blocks(page)]
    assert sum(bool(block.reason) for block in found) < len(found) / 2
    assert {block.language for block in found} <= {"sh", "python", "json", "text", "diff"}


def test_placeholders_are_filled_in() -> None:
    block = Block("x.md", 1, "sh", "o2o convert MODEL -o my-MODEL\nsource x\nprompt: output")
    assert script_of(block) == f"o2o convert {PLACEHOLDERS['MODEL']} -o my-MODEL"


def test_filter_pages_have_examples_too() -> None:
    for path in sorted((ROOT / "docs" / "filters").glob("*.py.md")):
        first = next(blocks(str(Path("docs") / "filters" / path.name)))
        for command in first.commands:
            for words in simple_commands(command):
                check_command(words)
