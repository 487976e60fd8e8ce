"""Each package that a module imports is declared in pyproject.toml."""

from __future__ import annotations

import ast
import functools
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {"bench", "docs", "export", "o2o", "runtime_py", "tests", "tinyllama"}

# Packages that their importers do not require: programs measured in environments of their own
# (bench/peers/environments.py), and sympy, which onnx_ir requires.
UNDECLARED = {
    "o2o/lazy_sympy.py": {"sympy"},
    "bench/peers/converters/llama_cpp.py": {"gguf", "llama_cpp"},
    "bench/peers/runners/llama_cpp.py": {"llama_cpp"},
    "bench/peers/runners/ort_genai.py": {"onnxruntime_genai"},
    "bench/peers/runners/litert_lm.py": {"litert_lm"},
    "bench/peers/runners/litert_lm_benchmark.py": {"litert_lm"},
    "bench/litert_lm/texts.py": {"litert_lm"},
    "bench/server_clients/litellm_client.py": {"litellm"},
}


def normalized(name: str) -> str:
    """Return a distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(extras: set[str]) -> set[str]:
    """Return the distributions that the project and these extras require."""
    requirements = [*PROJECT["dependencies"]]
    seen: set[str] = set()
    while extras - seen:
        extra = min(extras - seen)
        seen.add(extra)
        for requirement in PROJECT["optional-dependencies"][extra]:
            own = re.fullmatch(r"o2o\[(.*)\]", requirement)
            if own:
                extras = extras | set(own[1].split(","))
            else:
                requirements.append(requirement)
    return {normalized(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}  # type: ignore[index]


@functools.cache
def imported(path: Path) -> frozenset[str]:
    """The top-level name of each absolute import in a file."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.append(node.module.partition(".")[0])
    return frozenset(names)


distributions_of = functools.cache(packages_distributions)


def undeclared(folder: str, extras: set[str]) -> list[str]:
    """Return `file: package` for each import in `folder` that no declared distribution provides."""
    distributions = distributions_of()
    available = declared(extras)
    siblings = {path.stem for path in (ROOT / folder).glob("*.py")}  # a script finds these beside it
    result = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        known = OURS | siblings | sys.stdlib_module_names | UNDECLARED.get(file, set())
        for name in sorted(imported(path) - known):
            if not available & {normalized(each) for each in distributions.get(name, [name])}:
                result.append(f"{file}: {name}")
    return result


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("o2o", {"export", "onnx-runtime"}),  # torch reads pickled checkpoints
        ("runtime_py", {"plot", "onnx-runtime", "onert", "grammar", "serve"}),
        ("export", {"export"}),
        ("tinyllama", {"export"}),
        ("bench", {"dev"}),
        ("docs", {"dev", "docs"}),
        ("tests", {"dev"}),
    ],
)
def test_every_import_is_declared(folder: str, extras: set[str]) -> None:
    assert undeclared(folder, extras) == []


@pytest.mark.parametrize("folder", ["export", "o2o", "runtime_py", "tinyllama", "bench"])
def test_nothing_imports_the_tests(folder: str) -> None:
    importing = [path for path in (ROOT / folder).rglob("*.py") if "tests" in imported(path)]
    assert importing == []
