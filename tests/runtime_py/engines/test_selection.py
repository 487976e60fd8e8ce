"""The engines to try for a model, and options that an engine lacks."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from dataclasses import replace

import pytest

from o2o.errors import UsageError
from runtime_py.engines import loading
from runtime_py.engines.model_file import ModelFile
from runtime_py.engines.options import EngineOptions
from runtime_py.engines.registry import ENGINES, installed
from runtime_py.engines.selection import EngineChoice, candidates
from runtime_py.engines.speed_trial import Form, Speed
from runtime_py.package import Package
from tests.runtime_py.engines.conftest import S
from tests.runtime_py.engines.litert.test_lowered_file import write_circle
from tests.runtime_py.toy import Toy
from tests.runtime_py.toy_onnx import write_onnx
from tests.tolerances import assert_close

needs_onnx = pytest.mark.skipif("onnx" not in installed(), reason="no onnxruntime")


@pytest.mark.parametrize("requested", ["onnx", "onert"])
def test_tflite_runs_on_litert_alone(tmp_path, requested):
    (tmp_path / "model.tflite").write_bytes(Toy().file)
    with pytest.raises(
        UsageError, match=rf"model\.tflite: a \.tflite file runs on litert, not on {requested}"
    ):
        Package.load(tmp_path).engine(engine=requested)


@needs_onnx
def test_onnx_runs_on_onnx_alone(tmp_path):
    write_onnx(Toy(), tmp_path / "model.onnx")
    opened = Package.load(tmp_path)
    assert opened.model.name == "model.onnx"
    with pytest.raises(UsageError, match=r"model\.onnx: a \.onnx file runs on onnx, not on litert"):
        opened.engine(engine="litert")


def test_auto_skips_engines_that_are_not_installed(tmp_path, monkeypatch):
    file = write_circle(Toy(), tmp_path / "model.circle")
    for name in ("onnx", "onert"):
        monkeypatch.setitem(ENGINES, name, replace(ENGINES[name], module="a_module_that_nobody_has"))
    opened = Package.load(file)
    opened.engine().close()
    assert opened.loaded.description == "litert (float32, 1 thread): the only installed engine"


@needs_onnx
def test_auto_takes_another_where_the_fastest_cannot(tmp_path):
    opened = Package.load(write_circle(Toy(cached_lengths=[4]), tmp_path / "model.circle"))
    opened.engine().close()
    assert opened.loaded.choice == EngineChoice("litert", "onnx goes before it, but cannot run the model")


@needs_onnx
@pytest.mark.parametrize("threads", [None, 3])
def test_auto_takes_what_was_measured_fastest(pipeline_package, monkeypatch, threads):
    """The threads, too; a prompt counts where all forms were measured with one."""
    measured = {
        Form("litert", 2): Speed(3.0, 4.0, 0.5, load=1e9),
        Form("onnx", 2): Speed(1.0, 2.0, 7.0, load=1e9),
        Form("onnx", 1): Speed(9.0, 9.0, 0.1, load=1e9),
    }
    monkeypatch.setattr(loading, "measured_speeds", lambda *_: measured)
    opened = pipeline_package
    opened.engine(threads=threads).close()
    shown = "2 threads" if threads is None else "3 threads"
    assert (
        opened.loaded.description
        == f"litert (float32, {shown}): measured fastest on this machine, 2.12 times onnx"
    )
    measured[Form("litert", 2)] = Speed(3.0, 4.0, load=1e9)
    opened.engine().close()
    assert opened.loaded.description.startswith("onnx (float32, 2 threads): measured fastest on this machine")
    opened.engine(engine="litert").close()
    assert opened.loaded.description == "litert (float32, 2 threads): requested by --engine"


@needs_onnx
def test_auto_divides_a_text_where_that_is_faster(pipeline_package, monkeypatch):
    """The number of threads that is requested is that of both engines; scoring runs on one."""
    measured = {
        Form("litert", 2): Speed(3.0, 4.0, 0.5, 0.5),
        Form("onnx", 2): Speed(2.0, 2.0, 0.9, 0.9),
        Form("onnx", 1): Speed(9.0, 9.0, 0.1, 0.1),
    }
    monkeypatch.setattr(loading, "measured_speeds", lambda *_: measured)
    opened = pipeline_package
    engine = opened.engine(threads=2)
    assert opened.loaded.description == (
        "onnx (float32, 2 threads): measured fastest on this machine, with litert (2 threads) for prompts"
    )
    assert opened.loaded.name == "onnx, with litert for prompts"
    with closing(engine.open_session()) as session, closing(opened.engine(engine="onnx")) as alone:
        expected = alone.open_session()
        assert_close(session.prefill([1, 2, 3]), expected.prefill([1, 2, 3]))
        assert_close(session.decode(4, 3), expected.decode(4, 3))
    engine.close()
    opened.engine(all_logits=True).close()
    assert opened.loaded.division is None


def test_what_is_not_measured_goes_in_order_of_preference(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "measured_speeds", lambda *_: pytest.fail("it was measured"))
    opened = Package.load(write_circle(Toy(), tmp_path / "model.circle"))
    opened.engine(measures=False).close()
    assert opened.loaded.choice.engine == installed()[0]
    opened.engine(engine="litert", threads=1).close()


def test_buckets_choose_an_engine_that_has_them(pipeline_package):
    engine = pipeline_package.engine(buckets=[8])
    assert pipeline_package.loaded.choice == EngineChoice("litert", "the only engine that supports --buckets")
    assert list(engine.contract.decodes) == [8, S]
    engine.close()


@pytest.mark.parametrize("engine", ["onnx", "onert"])
def test_an_option_that_the_engine_lacks_is_refused(tmp_path, engine):
    file = write_circle(Toy(), tmp_path / "model.circle")
    message = (
        rf"model\.circle: the {engine} engine does not support --buckets: omit it, or pass --engine litert"
    )
    with pytest.raises(UsageError, match=message) as error:
        Package.load(file).engine(engine=engine, buckets=[4])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("engine", ["auto", "onnx"])
def test_an_option_that_no_engine_of_the_format_has_is_refused(tmp_path, engine):
    file = write_onnx(Toy(), tmp_path / "model.onnx")
    message = r"model\.onnx: the onnx engine does not support --buckets: omit it$"
    with pytest.raises(UsageError, match=message):
        Package.load(file).engine(engine=engine, buckets=[4])


def test_every_option_is_supported_or_refused():
    """Each option of each engine: `candidates` looks at every field of `EngineOptions`."""
    every = EngineOptions(threads=1, buckets=[4], debug=True)
    fields = {field.name for field in dataclasses.fields(EngineOptions)}
    fields -= {"engine", "all_logits", "speculate", "measures", "compile_all", "rounded_drafts"}
    fields -= {"disk_cache", "log"}
    assert every.requested == fields
    for spec in ENGINES.values():
        assert spec.options <= fields | {"disk_cache"}


def test_buckets_that_cannot_be_made_are_logged(pipeline_package):
    messages: list[str] = []
    pipeline_package.engine(buckets=[8, S, 1000], log=messages.append).close()
    assert messages == ["--buckets: no decode graph of capacity 1000; the model has 8, 32"]


def test_an_engine_that_does_not_exist(tmp_path):
    (tmp_path / "model.circle").write_bytes(b"")
    with pytest.raises(UsageError, match="there is no engine 'tensorrt': choose auto, "):
        candidates(ModelFile(tmp_path / "model.circle"), EngineOptions(engine="tensorrt"))
