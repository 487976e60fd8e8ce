"""All installed engines give the same results for the same model, and those of transformers."""

from __future__ import annotations

import dataclasses
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from o2o.errors import ModelError, UsageError
from o2o.filters import fuse_attention, merge_circles, reshape_io, transpose_io_kvcache
from runtime_py import package
from runtime_py.engines import artifact_cache, selection
from runtime_py.engines.factory import load_engine
from runtime_py.engines.model_file import ModelFile
from runtime_py.engines.onnx import prepare
from runtime_py.engines.onnx.lowered_file import lower_file
from runtime_py.engines.options import EngineOptions
from runtime_py.engines.registry import ENGINES, installed
from runtime_py.engines.selection import Choice, candidates
from runtime_py.generation.session import Session
from runtime_py.package import Package
from tests.closeness import assert_close
from tests.conftest import ROOT
from tests.exported import SHAPES, checkpoint
from tests.runtime_py.engines.litert.test_lowered_file import write_circle
from tests.runtime_py.toy import Toy
from tests.runtime_py.toy_onnx import write_onnx

S = 32
THERE = installed()
needs_onnx = pytest.mark.skipif("onnx" not in THERE, reason="no onnxruntime")


@pytest.fixture(scope="module", params=["demo", "grouped"])
def model(request, exported_model, shared_directory, tmp_path_factory) -> tuple[Package, Path]:
    """A package as the pipeline of the README makes it, and its checkpoint."""
    folder = tmp_path_factory.mktemp(request.param)
    config = SHAPES[request.param]
    heads, size = config["num_key_value_heads"], config["head_dim"]
    decode = exported_model(request.param, "concat")
    shapes = [f"[1,{heads},{rows},{size}]" for rows in (S - 2, S)]
    steps = [(fuse_attention, []), (reshape_io, ["input", "--by_shape", *shapes]), (transpose_io_kvcache, [])]
    for number, (step, args) in enumerate(steps):
        done = folder / f"{number}.circle"
        assert step.main([*args, str(decode), "-o", str(done)]) == 0
        decode = done
    graphs = [str(exported_model(request.param, "prefill")), str(decode.rename(folder / "decode.circle"))]
    assert merge_circles.main([*graphs, "-o", str(folder / "model.circle")]) == 0
    return Package.load(folder), checkpoint(shared_directory, request.param)


@pytest.fixture(scope="module")
def reference(model) -> tuple[list[int], dict[int, list[int]]]:
    """A text, and by length of a prefix of it the greedy tokens of transformers, up to the capacity."""
    import torch
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(model[1])
    text = np.random.default_rng(1).integers(3, theirs.config.vocab_size, S).tolist()
    expected = {}
    for length in (1, 5, S - 1, S):
        prompt = torch.tensor([text[:length]])
        ids = theirs.generate(prompt, do_sample=False, max_length=S + 1, eos_token_id=-1)
        expected[length] = ids[0, length:].tolist()
    return text, expected


@pytest.mark.parametrize("engine", THERE)
def test_greedy_tokens_are_those_of_transformers(model, reference, engine):
    text, expected = reference
    started = model[0].engine(threads=1, engine=engine)
    session = started.open_session()
    assert (started.capacity, model[0].running.choice) == (S, Choice(engine, "asked for"))
    for length, tokens in expected.items():
        logits = session.prefill(text[:length])
        greedy = [int(logits.argmax())]
        for position in range(length, S):
            greedy.append(int(session.decode(greedy[-1], position).argmax()))
        assert greedy == tokens
    started.close()


@pytest.mark.parametrize("engine", [name for name in THERE if name != "litert"])
def test_a_session_gives_the_logits_of_litert(model, engine):
    engines = [model[0].engine(threads=1, engine=name) for name in ("litert", engine)]
    sessions = [Session(loaded.open_session()) for loaded in engines]
    rng = np.random.default_rng(2)
    text = rng.integers(3, sessions[0].vocab_size, S).tolist()
    for length in rng.integers(1, S, 12).tolist():  # shorter prompts, too: only a prefix is reused
        text[length // 2 :] = rng.integers(3, sessions[0].vocab_size, S - length // 2).tolist()
        ours, theirs = (session.read(text[:length]) for session in sessions)
        assert_close(theirs, ours)
        ours, theirs = (session.append(text[length]) for session in sessions)
        assert_close(theirs, ours)
    for session, loaded in zip(sessions, engines, strict=True):
        session.close()
        loaded.close()


@needs_onnx
def test_an_onnx_package(model, tmp_path, reference):
    lower_file(ModelFile(model[0].model), tmp_path / "model.onnx")
    opened = Package.load(tmp_path)
    assert opened.size == sum(file.stat().st_size for file in tmp_path.glob("model.onnx*"))
    text, expected = reference
    engine = opened.engine()
    session = engine.open_session()
    assert opened.running.description == "onnx (float32, 1 thread): what runs .onnx files"
    assert session.prefill(text[:5]).argmax() == expected[5][0]
    assert (engine.contract.capacity, engine.contract.vocab_size) == (S, engine.vocab_size)
    engine.close()


@needs_onnx
def test_a_large_model_is_packed_once(model, reference, monkeypatch, tmp_path):
    monkeypatch.setattr(artifact_cache, "MIN_BYTES", 0)
    monkeypatch.setenv("O2O_CACHE", str(tmp_path / "cache"))
    text, expected = reference
    log_lines: list[str] = []
    for again in range(3):
        file = model[0].model if again < 2 else tmp_path / "model.circle"  # a copy
        if again == 2:
            file.write_bytes(model[0].model.read_bytes())
        engine = Package.load(file).engine(threads=2, log=log_lines.append, engine="onnx")
        session = engine.open_session()
        assert session.prefill(text[:5]).argmax() == expected[5][0]
        engine.close()
    message = f"packing the weights once: up to 0.0 GB into {tmp_path / 'cache'}"
    assert log_lines == [message]
    (entry,) = (tmp_path / "cache").iterdir()
    assert {file.name for file in entry.iterdir()} >= {"model.onnx", "entry.json"}
    assert not list(entry.glob("plain*"))


@needs_onnx
def test_a_full_disk_is_no_reason_not_to_run(model, reference, monkeypatch, tmp_path):
    monkeypatch.setattr(artifact_cache, "MIN_BYTES", 0)
    (tmp_path / "cache").write_text("no folder")
    monkeypatch.setenv("O2O_CACHE", str(tmp_path / "cache"))
    text, expected = reference
    log_lines: list[str] = []
    engine = model[0].engine(log=log_lines.append, engine="onnx")
    session = engine.open_session()
    assert session.prefill(text[:5]).argmax() == expected[5][0]
    engine.close()
    (line,) = log_lines
    assert line.startswith("packing the weights for this load only: ")


@needs_onnx
@pytest.mark.parametrize("room", [1, 100_000])
def test_a_disk_that_becomes_full(model, reference, monkeypatch, tmp_path, room):
    """During lowering, or while ONNX Runtime writes the packed model."""
    monkeypatch.setattr(artifact_cache, "MIN_BYTES", 0)
    monkeypatch.setenv("O2O_CACHE", str(tmp_path / "cache"))
    pack = prepare.pack_in_child

    def pack_in_little_room(*args):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        try:
            pack(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(prepare, "pack_in_child", pack_in_little_room)
    text, expected = reference
    log_lines: list[str] = []
    engine = model[0].engine(log=log_lines.append, engine="onnx")
    session = engine.open_session()
    assert session.prefill(text[:5]).argmax() == expected[5][0]
    engine.close()
    assert log_lines[1].startswith("packing the weights for this load only: ")
    assert list((tmp_path / "cache").iterdir()) == []


@needs_onnx
def test_a_large_model_that_cannot_be_onnx_is_lowered_once(tmp_path, monkeypatch):
    """The child's error is the error: nothing is stored, logged as a failure of packing, or tried again."""
    monkeypatch.setattr(artifact_cache, "MIN_BYTES", 0)
    monkeypatch.setenv("O2O_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(prepare, "lower_file", lambda *_: pytest.fail("it was lowered again"))
    file = write_circle(Toy(cached_lengths=[4]), tmp_path / "model.circle")
    messages: list[str] = []
    with pytest.raises(ModelError, match=r"model\.circle: ") as error:
        Package.load(file).engine(engine="onnx", log=messages.append)
    assert str(error.value).count("model.circle") == 1
    assert "\n" not in str(error.value)
    assert messages == [f"packing the weights once: up to 0.0 GB into {tmp_path / 'cache'}"]
    assert list((tmp_path / "cache").iterdir()) == []


@needs_onnx
def test_what_onnx_does_not_support_is_one_line(tmp_path):
    file = write_circle(Toy(cached_lengths=[4]), tmp_path / "model.circle")
    with pytest.raises(ModelError, match=r"model\.circle") as error:
        load_engine(file, EngineOptions(engine="onnx"))
    assert "\n" not in str(error.value)


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
    missing = replace(ENGINES["onnx"], module="a_module_that_nobody_has")
    monkeypatch.setitem(ENGINES, "onnx", missing)
    assert next(choice.engine for choice in candidates(ModelFile(file), EngineOptions())) == "litert"
    opened = Package.load(file)
    opened.engine().close()
    assert (
        opened.running.description
        == "litert (float32, 1 thread): onnx is faster at this size, and is not installed"
    )


@needs_onnx
def test_auto_takes_another_where_the_fastest_cannot(tmp_path, monkeypatch):
    file = write_circle(Toy(cached_lengths=[4]), tmp_path / "model.circle")
    assert [choice.engine for choice in candidates(ModelFile(file), EngineOptions())][:2] == [
        "onnx",
        "litert",
    ]
    opened = Package.load(file)
    opened.engine().close()
    assert opened.running.choice == Choice("litert", "onnx is faster at this size, and cannot run it")


@needs_onnx
@pytest.mark.parametrize(
    ("floats", "quantised", "engine", "size"),
    [(1e9, 1e9, "onnx", "small"), (1e9, 0, "onnx", "small"), (0, 0, "litert", "larger")],
)
def test_auto_takes_what_measured_fastest(model, monkeypatch, floats, quantised, engine, size):
    monkeypatch.setattr(selection, "ONNX_BELOW", {"float32": floats, "quantised": quantised})
    model[0].engine().close()
    assert model[0].running.description == f"{engine} (float32, 1 thread): measured fastest for {size} models"


def test_a_quantised_model_of_the_same_bytes_is_a_larger_one(tmp_path, monkeypatch):
    file = write_circle(Toy(), tmp_path / "model.circle")
    monkeypatch.setattr(selection, "ONNX_BELOW", {"float32": 1e9, "quantised": 0})
    assert selection.fastest(ModelFile(file)) == "onnx"
    monkeypatch.setattr(ModelFile, "weight_dtype", "dynamic int8")
    assert selection.fastest(ModelFile(file)) == "litert"


def test_buckets_choose_an_engine_that_has_them(model):
    engine = model[0].engine(buckets=[8])
    assert model[0].running.choice == Choice("litert", "the only engine that supports --buckets")
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
    fields = {field.name for field in dataclasses.fields(EngineOptions)} - {"engine", "disk_cache", "log"}
    assert every.requested == fields
    for spec in ENGINES.values():
        assert spec.options <= fields | {"disk_cache"}


def test_buckets_that_cannot_be_made_are_logged(model):
    messages: list[str] = []
    model[0].engine(buckets=[8, S, 1000], log=messages.append).close()
    assert messages == ["--buckets: no decode graph of capacity 1000; the model has 8, 32"]


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
