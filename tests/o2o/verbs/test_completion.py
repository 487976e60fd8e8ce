"""The completion scripts know verbs, filters and flags, and shells accept them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from o2o.verbs.completion import SHELLS, main


@pytest.fixture(scope="module")
def scripts() -> dict[str, str]:
    import shtab

    from o2o.verbs.completion import tree

    root = tree()
    return {shell: shtab.complete(root, shell) for shell in SHELLS}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_complete(shell: str, scripts: dict[str, str], tmp_path: Path) -> None:
    for word in ("perplexity", "fuse.attention", "max-new-tokens", "recipe"):
        assert word in scripts[shell]
    if program := shutil.which(shell):
        script = tmp_path / "script"
        script.write_text(scripts[shell])
        assert subprocess.run([program, "-n", script], capture_output=True).returncode == 0


def test_bash_completes_verbs_and_flags(scripts: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(scripts["bash"])

    def complete(*words: str) -> set[str]:
        function = f"COMP_WORDS=({' '.join(repr(word) for word in words)}); COMP_CWORD={len(words) - 1}; "
        function += '_shtab_o2o o2o; printf "%s\\n" "${COMPREPLY[@]}"'
        command = ["bash", "-c", f"source {script}; {function}"]
        return set(subprocess.run(command, capture_output=True, text=True).stdout.split())

    assert {"run", "chat", "fuse.attention", "gc"} <= complete("o2o", "")
    assert complete("o2o", "per") == {"perplexity"}
    assert "--max-new-tokens" in complete("o2o", "run", "--max")
    assert complete("o2o", "cache", "v") == {"verify"}


def test_an_unknown_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["csh"]) == 2
    assert "invalid choice: 'csh'" in capsys.readouterr().err
