"""What the package `runtime_py` exports."""

from __future__ import annotations

import subprocess
import sys

import pytest

import runtime_py
from runtime_py.generation.sampling import Sampling
from runtime_py.package import Package


def test_exports():
    assert runtime_py.Package is Package
    assert runtime_py.Sampling is Sampling
    assert set(runtime_py.__all__) == {"Grammar", "Package", "Sampling"}
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = runtime_py.Nothing


def test_sampling_has_its_documented_name():
    from runtime_py import sampling

    assert sampling.Sampling is Sampling


def test_the_package_imports_nothing_slow():
    code = "import sys, runtime_py; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
