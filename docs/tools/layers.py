"""The picture of the layers, drawn from the import contracts in pyproject.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

from docs.tools.drawing import Drawing, Kind

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
ROW, GAP, WIDTH, LEFT = 34, 6, 440, 20  # pixels
COLUMNS = 3  # more modules of one layer go into a second row
KINDS: dict[str, Kind] = {"o2o": "rewrite", "runtime_py": "run"}


def contracts() -> dict[str, list[list[str]]]:
    """Read the layers inside the packages.

    Returns:
        The layers of each package, the highest first; each is a list of modules.
    """
    configuration = tomllib.loads(PYPROJECT.read_text())["tool"]["importlinter"]["contracts"]
    return {
        contract["containers"][0]: [
            [module.strip(" ()") for module in layer.replace("|", ":").split(":")]
            for layer in contract["layers"]
        ]
        for contract in configuration
        if contract["type"] == "layers" and "containers" in contract
    }


def drawing() -> str:
    """Draw the layers of each package, side by side. A module imports only from layers below its own.

    Returns:
        The text of an SVG file.
    """
    packages = {package: list(_rows(layers)) for package, layers in contracts().items()}
    top = 150
    height = top + 34 + max(map(len, packages.values())) * (ROW + GAP) + 10
    title = "The packages and their layers: each module imports from layers below its own, never from above."
    d = Drawing(LEFT + len(packages) * (WIDTH + LEFT), height, title)
    full = d.width - 2 * LEFT
    d.box(LEFT, 12, full, 40, "plain", ["#tinyllama: the example, on top of all"])
    d.box(LEFT, 58, full / 2 - 4, 40, "export", ["#export: checkpoint to graphs"])
    d.box(LEFT + full / 2 + 4, 58, full / 2 - 4, 40, "run", ["#runtime_py: package to text"])
    d.box(LEFT, 104, full, 40, "rewrite", ["#o2o: read, rewrite and write graphs"])
    for number, (package, rows) in enumerate(packages.items()):
        x = LEFT + number * (WIDTH + LEFT)
        d.text(x, top + 24, f"#inside {package}", "start")
        for row, modules in enumerate(rows):
            y = top + 34 + row * (ROW + GAP)
            w = (WIDTH - GAP * (len(modules) - 1)) / len(modules)
            for column, module in enumerate(modules):
                d.box(
                    x + column * (w + GAP), y, round(w, 1), ROW, KINDS.get(package, "plain"), [f"`{module}`"]
                )
    return d.svg()


def _rows(layers: list[list[str]]) -> Iterator[list[str]]:
    for modules in layers:
        yield from (modules[start : start + COLUMNS] for start in range(0, len(modules), COLUMNS))
