"""`o2o convert decoder.onnx`: packages of a decoder in ONNX, which another tool exported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.onnx_decoder import GENAI_CONFIG, MAX_LENGTH, OnnxDecoder
from o2o.__main__ import main
from runtime_py.package import Package
from tests.runtime_py.toy_decoder import Form, expected, write_decoder

TEXT = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return write_decoder(Form(), folder / "model.onnx")


def run(*arguments: object) -> int:
    return main(["convert", *map(str, arguments)], "o2o")


def test_a_package_of_circle(decoder: Path, tmp_path: Path) -> None:
    """It returns the logits of the decoder, on LiteRT, for a prompt in chunks and for single tokens."""
    flags = ["--max-length", 16, "--prefill-lengths", 4]
    assert run(decoder, "-o", tmp_path / "package", *flags) == 0
    with Package.load(tmp_path / "package") as package:
        session = package.engine(engine="litert").open_session()
        logits = expected(TEXT)
        np.testing.assert_allclose(session.prefill(TEXT[:6]), logits[5], atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(session.decode(TEXT[6], 6), logits[6], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        ([], ["--tokens 8", "raise.circle.py > decode.circle", "--sig-names 'prefill_8;decode'"]),
        (["--format", "tflite", "--quantize", "dynamic_int8"], ["sign.ai_edge.py", "--recipe dynamic_int8"]),
        (["--format", "onnx"], ["lower.onnx.py --form ort", "--sig-names decode"]),
    ],
)
def test_a_dry_run_prints_the_plan(
    decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], steps: list[str]
) -> None:
    assert run(decoder.parent, "-o", tmp_path / "p", "--max-length", 20, "--dry-run", *flags) == 0
    printed = capsys.readouterr().out
    for step in steps:
        assert step in printed
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cache", "concat"], "--cache needs a checkpoint"),
        (["--dtype", "float16"], "--dtype needs a checkpoint"),
        (["--format", "onnx", "--onnx-form", "genai"], "--onnx-form genai needs a checkpoint"),
        (["--format", "onnx", "--prefill-lengths", "4"], "--prefill-lengths excludes --format onnx"),
        (["--quantize", "int3"], "int3"),
    ],
)
def test_wrong_usage(
    decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert run(decoder, "-o", tmp_path / "p", *flags) == 2
    assert message in capsys.readouterr().err


def test_the_folder_of_the_decoder_is_no_output(decoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A package has one model, so the decoder would be removed."""
    assert run(decoder, "-o", decoder.parent) == 2
    assert "give another folder" in capsys.readouterr().err
    assert decoder.exists()


def test_the_context_of_genai_is_the_capacity(tmp_path: Path) -> None:
    decoder = OnnxDecoder(tmp_path / "model.onnx", None, None)
    assert decoder.capacity == MAX_LENGTH
    (tmp_path / GENAI_CONFIG).write_text('{"model": {"context_length": 96}}')
    assert decoder.capacity == 96
    assert replace(decoder, max_length=64).capacity == 64
