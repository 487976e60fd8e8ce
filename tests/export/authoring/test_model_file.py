"""A model file: what it must define, and one line for each of its mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from export.authoring.model_file import load
from o2o.errors import ModelError, UsageError
from tests.export.authoring.conftest import BLOCKS, PLAIN


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.py"
    path.write_text(text)
    return path


def test_a_model(tmp_path: Path) -> None:
    source = load(written(tmp_path, PLAIN))
    config = source.config({})
    with torch.device("meta"):
        model = source.build(config)
    assert config.vocab_size == 40
    assert model.tokens.weight.is_meta
    assert float(model.scale) == pytest.approx(24**-0.5)
    assert source.tensor_names(config) == {}


def test_a_module_beside_it(tmp_path: Path) -> None:
    (tmp_path / "beside_the_model.py").write_text("def broken(config):\n    return config.no_such_field\n")
    text = PLAIN.replace("build_model = Model", "from beside_the_model import broken\nbuild_model = broken")
    source = load(written(tmp_path, text))
    with pytest.raises(ModelError, match=r"beside_the_model.py:2: AttributeError"):
        source.build(source.config({}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\0b", "mine.py: source code string cannot contain null bytes"),
        ("def f(:\n", ":1: invalid syntax"),
        ("import no_such_module\n", ":1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("x = 1\n\n1 / 0\n", ":3: ZeroDivisionError: division by zero"),
        ("def build_model(config): ...\n", "defines no function get_model_config"),
        ("get_model_config = build_model = 1\n", "defines no function get_model_config"),
        ("raise SystemExit(3)\n", ":1: SystemExit: 3"),
    ],
)
def test_a_file_that_fails(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(written(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("vocab_size=40, ", "", "needs vocab_size, a positive integer"),
        ("head_dim=6", "head_dim=0", "needs head_dim, a positive integer or one for each of the 2 layers"),
        ("num_key_value_heads=2", "num_key_value_heads=[2]", "needs num_key_value_heads"),
        (
            "num_key_value_heads=2",
            "num_key_value_heads=[2, 3]",
            "layer 1 has 4 query heads, which 3 key/value",
        ),
        ("return SimpleNamespace(", "return fields['dim'] or SimpleNamespace(", ":10: KeyError: 'dim'"),
    ],
)
def test_a_configuration_that_fails(tmp_path: Path, old: str, new: str, message: str) -> None:
    source = load(written(tmp_path, PLAIN.replace(old, new)))
    with pytest.raises(ModelError) as caught:
        source.config({})
    assert message in str(caught.value)


def test_a_model_that_is_none(tmp_path: Path) -> None:
    source = load(written(tmp_path, PLAIN.replace("build_model = Model", "build_model = dict")))
    with pytest.raises(ModelError, match=r"a torch\.nn\.Module"):
        source.build([])


def test_a_configuration_without_arguments(tmp_path: Path) -> None:
    source = load(written(tmp_path, BLOCKS.replace("get_model_config(fields)", "get_model_config()")))
    assert source.config({"ignored": 1}).num_hidden_layers == 3


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load(tmp_path / "none.py")


@pytest.mark.parametrize("result", ["None", "({}, {'a': 1})", "({}, [])", "3, 4"])
def test_a_reader_that_returns_something_else(tmp_path: Path, result: str) -> None:
    source = load(written(tmp_path, f"{PLAIN}\ndef read_checkpoint(path):\n    return {result}\n"))
    with pytest.raises(ModelError, match="read_checkpoint has to return"):
        source.read_checkpoint(tmp_path)
