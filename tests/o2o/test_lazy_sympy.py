"""Filters start fast: every stage of every pipe pays for what it imports."""

from __future__ import annotations

import subprocess
import sys

from o2o import filters

HEAVY = {
    "torch",
    "transformers",
    "tico",
    "onnxscript",
    "sympy",
    "ai_edge_litert.interpreter",
    "scipy",
    "pandas",
}

PROGRAM = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(f"o2o.filters.{name}")
print(*sys.modules)
"""


def test_no_filter_imports_anything_heavy() -> None:
    command = [sys.executable, "-c", PROGRAM, *filters.names()]
    modules = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert "o2o.filters.gc" in modules
    assert not modules & HEAVY


def test_listing_the_filters_imports_none() -> None:
    program = "import sys; from o2o import filters; filters.names(); print(*sys.modules)"
    command = [sys.executable, "-c", program]
    modules = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert not [name for name in modules if name.startswith("o2o.filters.")]
