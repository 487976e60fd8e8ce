"""Verbs are entry points: of this checkout's pyproject.toml, or of installed distributions."""

from __future__ import annotations

from pathlib import Path

import pytest

from o2o import verbs
from o2o.verbs import Verb

METADATA = """\
[console_scripts]
other = other:main

[o2o.verbs.tools]
greet = greeting
run = other.run
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another distribution, which declares two verbs."""
    folder = tmp_path / "greeting-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(METADATA)
    (tmp_path / "greeting.py").write_text(
        '"""Greet the user: `o2o greet`."""\nimport argparse\n'
        "def parser(): return argparse.ArgumentParser('greet')\n"
        "def main(argv): print('hello', *argv); return 7\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_other_distributions_add_verbs(plugin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    greet = verbs.find("greet")
    assert greet == Verb("tools", "greet", "greeting")
    assert greet.summary == "Greet the user"
    assert greet.main(["you"]) == 7
    assert capsys.readouterr().out == "hello you\n"
    assert greet in verbs.verbs()


def test_a_verb_of_this_distribution_comes_first(plugin: Path) -> None:
    run = verbs.find("run")
    assert run is not None
    assert run.module == "runtime_py.run"


def test_without_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The installed metadata name the verbs. A pyproject.toml of another project does not count."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "other"\n')
    monkeypatch.setattr(verbs, "PYPROJECT", tmp_path / "pyproject.toml")
    monkeypatch.setattr(verbs, "DISTRIBUTION", "there-is-no-such-distribution")
    assert verbs.find("there is none") is None


def test_a_module_that_cannot_be_read_has_no_summary() -> None:
    assert verbs.first_line("no.such.module") == ""
    assert verbs.first_line("json").startswith("JSON")
