"""Loading of a model on the first engine that takes it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from o2o.errors import ModelError, UsageError
from runtime_py import package
from runtime_py.engines.model_file import ModelFile
from runtime_py.engines.options import EngineOptions
from runtime_py.engines.registry import ENGINES, EngineSpec
from runtime_py.package import Package
from tests.conftest import ROOT
from tests.runtime_py.engines.litert.test_lowered_file import write_circle
from tests.runtime_py.toy import Toy


@pytest.mark.parametrize(("engine", "module"), [("onnx", "onnxruntime"), ("onert", "onert.native")])
def test_a_missing_runtime_is_named_with_its_installation(tmp_path, engine, module):
    file = write_circle(Toy(), tmp_path / "model.circle")
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from o2o.errors import ModelError\n"
        "from runtime_py.package import Package\n"
        f"try: Package.load(sys.argv[1]).engine(engine={engine!r})\n"
        "except ModelError as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    spec = ENGINES[engine]
    assert done.stdout.startswith(f"the {engine} engine needs {spec.module} (")
    assert done.stdout.endswith(f"): {spec.install}\n")


def test_the_first_error_is_raised_where_no_engine_takes_the_model(tmp_path):
    (tmp_path / "model.circle").write_bytes(b"CIR0")
    with pytest.raises(ModelError, match=r"model\.circle"):
        Package.load(tmp_path).engine()


def test_a_tokenizer_of_another_model_is_not_tried_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "model.tflite").write_bytes(Toy().file)
    opened = Package.load(tmp_path)
    monkeypatch.setattr(package, "has_tokenizer", lambda folder: True)
    opened.__dict__["tokenizer"] = type("Larger", (), {"vocab_size": 400})()
    with pytest.raises(ModelError, match="the tokenizer has 400 ids, the model 11"):
        opened.engine()


class FakeEngine(Toy):
    weight_dtype = "float7"
    vocab_size = 11

    def close(self) -> None:
        pass


def test_an_engine_is_one_entry_of_the_registry(tmp_path, monkeypatch):
    loads: list[EngineOptions] = []

    def load(model: ModelFile, options: EngineOptions) -> FakeEngine:
        loads.append(options)
        return FakeEngine()

    spec = EngineSpec(
        "fake", "json", "pip install fake", (".circle",), "fake", False, frozenset({"threads"}), load
    )
    monkeypatch.setitem(ENGINES, "fake", spec)
    file = write_circle(Toy(), tmp_path / "model.circle")
    opened = Package.load(file)
    opened.engine(engine="fake", threads=3)
    assert opened.loaded.description == "fake (float7, 3 threads): requested by --engine"
    assert loads[0].threads == 3
    opened.engine(engine="fake")
    assert loads[1].threads == 1
    with pytest.raises(UsageError, match="the fake engine does not support --buckets, --debug"):
        opened.engine(engine="fake", buckets=[2], debug=True)
