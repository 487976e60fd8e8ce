"""Shared by all tests: the command line as a user meets it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from export.loading_flags import VARIABLES
from runtime_py.engines.speed_trial import Form, Speed, Speeds
from tests import slow
from tests.exported import exported

ROOT = Path(__file__).resolve().parent.parent

# Tests compute little: torch's threads would wait for each other, and for the cores that other workers use.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The time of an example says how busy the machine is.
settings.register_profile("busy", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave slow files out of `-m "not slow"`, so that nothing in them is imported."""
    fast = config.getoption("markexpr") == "not slow"
    return True if fast and file_of(collection_path) in slow.FILES else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow tests: those that `tests.slow` lists, and those of exported models, which take torch."""
    for item in items:
        file = file_of(item.path)
        is_listed = file in slow.FILES or getattr(item, "originalname", item.name) in slow.TESTS.get(file, ())
        if is_listed or "exported_model" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Collect garbage more rarely: the modules and the tests, millions of objects, stay to the end."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


def file_of(path: Path) -> str:
    """Return the path of a test file below the repository's root."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""


@pytest.fixture(autouse=True)
def loading_flags_stay_in_a_test() -> Iterator[None]:
    """Unset `--model-file` and the other flags that a parser has set for its process."""
    before = {name: os.environ.get(name) for name in VARIABLES.values()}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session", autouse=True)
def cache_of_this_run(shared_directory: Path) -> Iterator[None]:
    """Let commands store nothing in the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("O2O_CACHE", str(shared_directory / "o2o-cache"))
        yield


@pytest.fixture(scope="session", autouse=True)
def speeds_of_this_run() -> Iterator[None]:
    """Let `auto` take the same engine in every run: ONNX Runtime, then LiteRT, on one thread."""

    def speeds(model: object, engines: list[str], *_: object) -> Speeds:
        seconds = {"onnx": 1.0, "litert": 2.0}
        return {Form(name, 1): Speed(seconds[name], seconds[name]) for name in engines}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runtime_py.engines.loading.measured_speeds", speeds)
        yield


@pytest.fixture
def run_module() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python -m MODULE ARGS...` from the repository's root, in a process of its own."""

    def run(module: str, *args: object, **options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", module, *map(str, args)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload]

    return run


@pytest.fixture(scope="session")
def shared_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all processes of this test run."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def exported_model(shared_directory: Path) -> Callable[[str, str], Path]:
    """(shape, form) -> a Circle file, see `tests.exported`."""
    return lambda shape, form: exported(shared_directory, shape, form)
