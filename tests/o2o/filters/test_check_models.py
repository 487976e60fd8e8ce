"""check.models.py compares two files of any history."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from o2o import formats
from o2o.filters.check_models import main
from o2o.lower.litert import lower_to_litert
from o2o.model import Model
from tests.o2o import graphs
from tests.o2o.filters.test_sign_ai_edge import lowered
from tests.o2o.fused_graphs import Form, attention
from tests.o2o.language_model_graphs import language_model


@pytest.fixture
def compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(first: Model, second: Model, *flags: str) -> tuple[int, str]:
        paths = [str(tmp_path / name) for name in ("first", "second")]
        for path, model in zip(paths, (first, second), strict=True):
            formats.save(model, path)
        code = main([*flags, *paths])
        captured = capsys.readouterr()
        assert (captured.err == "") == (code == 0)
        return code, captured.out + captured.err

    return run


def test_the_same(compare: Callable[..., tuple[int, str]]) -> None:
    code, text = compare(language_model(), lowered())
    assert (code, text.count("\n")) == (0, 1)
    assert text.startswith("checked on LiteRT: 6 outputs the same, within ")


def test_a_lowering_with_and_without_a_contract(compare: Callable[..., tuple[int, str]]) -> None:
    for has_roles in (True, False):
        fused = attention(Form(T=3, layout="BTNH", has_roles=has_roles))
        tflite = lower_to_litert(attention(Form(T=3, layout="BTNH", has_roles=has_roles)))
        for pair in ((fused, tflite), (tflite, fused)):
            code, text = compare(*(formats.loads(formats.dumps(model)) for model in pair))
            assert code == 0, text
            assert ": 3 outputs the same" in text


def test_another_weight(compare: Callable[..., tuple[int, str]]) -> None:
    other = graphs.linear()
    weight = other.graphs[0].initializers["bias"]
    assert weight.const_value is not None
    weight.const_value = ir.Tensor(weight.const_value.numpy() * 1.25, name="bias")
    code, text = compare(graphs.linear(), other)
    assert code == 1
    assert text.startswith("check.models.py: --check: output y of main differs at position 0 by ")
    assert "the first tensor that differs is y" in text
    assert compare(graphs.linear(), other, "--tolerance", "0.9")[0] == 0


def test_other_names(compare: Callable[..., tuple[int, str]]) -> None:
    other = graphs.linear()
    signature = other.signatures[0]
    signature.name = "serving_default"
    signature.inputs = {"a": signature.inputs["x"]}
    signature.outputs = {"b": signature.outputs["y"], "c": signature.outputs["z"]}
    assert compare(graphs.linear(), other)[0] == 0
    signature.outputs = {"b": signature.outputs["c"], "c": signature.outputs["b"]}
    assert "output b of serving_default differs" in compare(graphs.linear(), other)[1]


def test_other_interfaces(compare: Callable[..., tuple[int, str]]) -> None:
    code, text = compare(graphs.linear(), graphs.decoder())
    assert (code, text) == (1, "check.models.py: --check: the models have 1 and 2 signatures\n")
    other = graphs.linear()
    other.signatures[0].outputs.pop("z")
    code, text = compare(graphs.linear(), other)
    assert (code, text) == (
        1,
        "check.models.py: --check: main has 2 outputs in the first model and 1 in the second\n",
    )


@pytest.mark.parametrize("share", ["-1", "nan", "inf", "much"])
def test_a_tolerance_that_is_none(share: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tolerance", share, "a", "b"]) == 2
    assert f"'{share}' is not a number from 0 on" in capsys.readouterr().err
