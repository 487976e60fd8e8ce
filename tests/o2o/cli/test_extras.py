"""Extras: what is missing, and the command that installs it."""

from __future__ import annotations

import importlib.metadata

import pytest

from o2o.cli import command, extras
from o2o.errors import O2oError

REQUIREMENTS = [
    "numpy>=2",
    "absent-package==1.0; extra == 'export'",
    'numpy; extra == "plot"',
    "numpy ; python_version < '3.13' and extra == 'onert'",
]


@pytest.fixture(autouse=True)
def _metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: REQUIREMENTS)


def test_a_missing_package() -> None:
    with pytest.raises(O2oError) as caught:
        extras.require("export")
    assert str(caught.value) == "this command needs the export extra: pip install 'o2o[export]'"
    assert caught.value.exit_code == 1


def test_installed_and_unknown_extras() -> None:
    extras.require("plot")
    extras.require("onert")
    extras.require("nothing")


def test_the_extra_of_a_module() -> None:
    assert extras.extra_of("absent_package.models") == "export"
    assert extras.extra_of("other") is None


def test_without_an_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> None:
        raise importlib.metadata.PackageNotFoundError("o2o")

    monkeypatch.setattr(importlib.metadata, "requires", absent)
    assert extras.extra_of("absent_package") is None
    extras.require("export")


def test_an_import_error_names_the_extra(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> None:
        raise ModuleNotFoundError("No module named 'absent_package.sub'", name="absent_package.sub")

    assert command.run("export", body) == 1
    assert (
        capsys.readouterr().err == "export: absent_package.sub is not installed: pip install 'o2o[export]'\n"
    )
