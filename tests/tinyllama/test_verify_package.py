"""`o2o verify`: a package against transformers, and what it says of one that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from o2o import formats
from o2o.filters import merge_circles, quantize_weights
from tests.exported import checkpoint, exported
from tests.runtime_py.tokenizers_on_disk import write_sentencepiece
from tinyllama.verify_package import main

TEXTS = ["--prompts", "the quick brown fox", "--max-new-tokens", "6", "--engine", "litert"]


@pytest.fixture(scope="module")
def model(shared_directory: Path) -> Path:
    """The random checkpoint of the demo's shape."""
    return checkpoint(shared_directory, "demo")


@pytest.fixture(scope="module")
def package(shared_directory: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its graphs with a tokenizer of 512 pieces."""
    folder = tmp_path_factory.mktemp("package")
    write_sentencepiece(folder)
    (folder / "config.json").write_bytes((model / "config.json").read_bytes())
    graphs = [str(exported(shared_directory, "demo", form)) for form in ("prefill", "static")]
    assert merge_circles.main([*graphs, "-o", str(folder / "model.circle")]) == 0
    return folder


def verify(package: Path, model: Path, *flags: str) -> int:
    return main([str(package), "--checkpoint", str(model), *TEXTS, *flags])


def test_the_same_model(package: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = verify(package, model)
    captured = capsys.readouterr()
    assert code == 0, captured
    assert "the first 6 of 6 tokens are the same" in captured.out
    assert captured.out.splitlines()[-1] == "✓ ALL TESTS PASSED"


def test_a_quantized_model(
    package: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "model.circle"
    assert quantize_weights.main([str(package / "model.circle"), "-o", str(output)]) == 0
    assert verify(output, model, "--tokenizer", str(package)) == 0
    assert "int8 weights" in capsys.readouterr().out


def _negate_one_matrix(path: Path) -> None:
    """Change the weights of the model's largest matrix."""
    import onnx_ir as ir

    file = formats.load(path)
    values = [value for graph in file.graphs for value in graph.initializers.values()]
    largest = max(
        (value for value in values if value.const_value is not None),
        key=lambda value: value.const_value.nbytes,  # type: ignore[union-attr]
    )
    assert largest.const_value is not None
    largest.const_value = ir.tensor(-largest.const_value.numpy(), name=largest.name)
    formats.save(file, path)


def test_other_weights(
    package: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.circle"
    path.write_bytes((package / "model.circle").read_bytes())
    _negate_one_matrix(path)
    assert verify(path, model, "--tokenizer", str(package)) == 1
    captured = capsys.readouterr()
    assert captured.err == ""
    assert '✗ FAILED: prompt "the quick brown fox"' in captured.out


def test_another_model(package: Path, shared_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(package, checkpoint(shared_directory, "grouped")) == 1
    assert "they are not the same model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompts", "word " * 40], "give 1 to 32"),
        (["--prompts", ""], "has 0 tokens: give 1 to 32"),
        (["--max-new-tokens", "0"], "is not a positive integer"),
    ],
)
def test_wrong_usage(
    package: Path, model: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(package, model, *flags) == 2
    assert message in capsys.readouterr().err
