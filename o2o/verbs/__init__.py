"""The verbs of the command `o2o`: entry points of groups below `o2o.verbs`.

The package that has a verb declares it, in pyproject.toml:

    [project.entry-points."o2o.verbs.measure"]
    bench = "runtime_py.bench"

The module has `parser()`, which returns an `argparse.ArgumentParser`, and `main(argv)`, which returns the
exit code. It imports nothing slow before `main`. The first line of its docstring, up to a colon, is the
verb's line in `o2o --help`. `o2o` finds verbs in metadata and imports only the one that it runs. A source
checkout has newer metadata than its installation: there the verbs are read from pyproject.toml.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

DISTRIBUTION = "o2o"
GROUPS = "o2o.verbs."
PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


@dataclass(frozen=True, order=True)
class Verb:
    """A verb of `o2o`.

    Attributes:
        group: Its heading in the help, such as `measure`.
        name: What the user types.
        module: The module that has it.
    """

    group: str
    name: str
    module: str

    @property
    def summary(self) -> str:
        """What it does, in one line. The module is not imported."""
        return first_line(self.module).partition(":")[0].rstrip(".")

    def parser(self) -> argparse.ArgumentParser:
        """Make the verb's parser.

        Returns:
            The parser.
        """
        parser: argparse.ArgumentParser = importlib.import_module(self.module).parser()
        return parser

    def main(self, argv: Sequence[str]) -> int:
        """Run the verb.

        Args:
            argv: Its arguments.

        Returns:
            The exit code.
        """
        code: int = importlib.import_module(self.module).main(argv)
        return code


def find(name: str) -> Verb | None:
    """Find a verb: first of this distribution, then of all that are installed.

    Args:
        name: What the user typed.

    Returns:
        The verb; None if there is none of that name.
    """
    verbs = (verb for group in (_own(), _installed()) for verb in group)
    return next((verb for verb in verbs if verb.name == name), None)


def verbs() -> list[Verb]:
    """List all verbs.

    Returns:
        The verbs by group and name. A name of this distribution comes before the same name of another.
    """
    by_name: dict[str, Verb] = {}
    for verb in (*_own(), *_installed()):
        by_name.setdefault(verb.name, verb)
    return sorted(by_name.values())


def first_line(module: str) -> str:
    """Read the first line of a module's docstring. The module is not imported.

    Args:
        module: Its name.

    Returns:
        The line; empty if there is none.
    """
    try:
        spec = importlib.util.find_spec(module)
        code: Any = spec.loader.get_code(module) if spec and spec.loader else None  # type: ignore[attr-defined]
    except (ImportError, AttributeError):
        return ""
    docstring = code.co_consts[0] if code and code.co_consts else None
    return docstring.strip().partition("\n")[0] if isinstance(docstring, str) else ""


def _own() -> Iterator[Verb]:
    """The verbs of this distribution."""
    if PYPROJECT.is_file():
        import tomllib

        project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8")).get("project", {})
        if project.get("name") == DISTRIBUTION:
            groups = project.get("entry-points", {})
            yield from _verbs((group, *item) for group, items in groups.items() for item in items.items())
            return
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        entries = distribution(DISTRIBUTION).entry_points
    except PackageNotFoundError:
        return
    yield from _verbs((entry.group, entry.name, entry.value) for entry in entries)


def _installed() -> Iterator[Verb]:
    """The verbs of all installed distributions. Reading their metadata takes some milliseconds."""
    from importlib.metadata import distributions

    entries = (entry for one in distributions() for entry in one.entry_points)
    yield from _verbs((entry.group, entry.name, entry.value) for entry in entries)


def _verbs(entries: Iterable[tuple[str, str, str]]) -> Iterator[Verb]:
    for group, name, module in entries:
        if group.startswith(GROUPS):
            yield Verb(group.removeprefix(GROUPS), name, module)
