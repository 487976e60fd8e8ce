"""`o2o serve`: names of packages, settings, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime_py.serve import KEY_VARIABLE, main, packages_from, parser, settings_from


def test_packages_have_names(tmp_path: Path) -> None:
    for name in ("a", "b=c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.tflite").write_bytes(b"")
    args = parser().parse_args([f"{tmp_path / 'a'}", f"x={tmp_path / 'a'}", f"{tmp_path / 'b=c'}"])
    assert list(packages_from(args, settings_from(args))) == ["a", "x", "b=c"]


def test_keys_come_from_flags_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert settings_from(parser().parse_args(["p"])).api_keys == ()
    monkeypatch.setenv(KEY_VARIABLE, "k")
    assert settings_from(parser().parse_args(["p"])).api_keys == ("k",)
    assert settings_from(parser().parse_args(["p", "--api-key=a", "--api-key=b"])).api_keys == ("a", "b")


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["missing"], "missing: no such folder", 1),
        (["a", "a"], "a: give each package a name of its own, such as NAME=a", 2),
        (["a", "--api-key="], "--api-key is empty", 2),
        (["a", "--port=70000"], "--port 70000: a port is a number from 0 to 65535", 2),
        (["a", "--temperature=-1"], "temperature is -1: it must be a number of 0 or more", 2),
        (["a", "--seed=-1"], "seed is -1: it must be an integer of 0 or more", 2),
        (["a", "--timeout=0"], "'0' is not a number of seconds above 0", 2),
        (["a", "--queue=-1"], "'-1' is not an integer from 0", 2),
        (["a", "--parallel=0"], "'0' is not a positive integer", 2),
        (["a"], "a/model.tflite", 1),
    ],
)
def test_wrong_usage_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
    code: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a").mkdir()
    Path("a/model.tflite").write_bytes(b"")
    assert main([*arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
