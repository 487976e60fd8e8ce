"""The flags for the form of a text; those of sampling are in test_run.py."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from runtime_py.run import main


def generated(folder: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert main([str(folder), "--prompt=hi", *flags]) == 0
    return capsys.readouterr().out.split("detokenized: ")[1].removesuffix("\n")


def test_the_form_of_a_text(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schema = {"type": "array", "items": {"type": "integer", "maximum": 9}, "maxItems": 3}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    (tmp_path / "yes.lark").write_text('start: "yes" | "no"')
    for source in (json.dumps(schema), str(tmp_path / "schema.json")):
        assert len(json.loads(generated(folder, capsys, f"--json-schema={source}"))) <= 3
    assert re.fullmatch(" [ab]{3}", generated(folder, capsys, "--regex= [ab]{3}"))
    assert generated(folder, capsys, f"--grammar={tmp_path / 'yes.lark'}") in ("yes", "no")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--json-schema={"], "the JSON schema is not JSON"),
        (['--json-schema={"not": {}}'], "the JSON schema is not supported"),
        (["--json-schema=missing.json"], "--json-schema missing.json: No such file"),
        (["--regex=("], "the regular expression is not supported"),
        (["--grammar=missing.lark"], "--grammar missing.lark: No such file"),
        (["--regex=a", "--grammar=b"], "not allowed with argument"),
    ],
)
def test_wrong_forms_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main([str(folder), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
