"""`python -m runtime_py.bench`: its output and its use of an engine, not how fast anything is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from runtime_py.bench import main, measure_round
from runtime_py.benchmark.report import Decode, Prefill, Report
from runtime_py.engines.registry import installed
from tests.runtime_py.generation.test_generate import CountingEngine
from tests.runtime_py.toy import Toy
from tests.runtime_py.toy_onnx import write_onnx


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("O2O_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "model.tflite").write_bytes(Toy(prefill_length=0, cached_lengths=[8], capacity=200).file)
    return folder


def test_every_line_and_every_figure(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = tmp_path / "b.json", tmp_path / "b.png"
    options = ["--rounds", "1", "--tokens", "3", "--json", str(files[0]), "--plot", str(files[1])]
    assert main([str(package), *options]) == 0
    out, err = capsys.readouterr()
    number = r"[\d.,]+"
    size = (package / "model.tflite").stat().st_size
    prefills = "".join(
        rf"prefill +{n} tokens: first token after {number} ms, {number} tokens/s\n" for n in (16, 128)
    )
    decodes = "".join(
        rf"decode +after +{n}: {number} tokens/s, \d+% of the memory bandwidth\n" for n in (16, 128)
    )
    assert re.fullmatch(
        rf"{package}: {size / 1e6:.1f} MB, 200 tokens of context, 1 thread\n"
        rf"engine    litert \(float32, 1 thread\): the only engine for \.tflite files\n"
        rf"load +{number} s cold, {number} s warm\n{prefills}{decodes}"
        r"(?: +above 100%: .+\n)?"
        rf"memory +{number} MB at most, {number} times the file\n"
        rf"reads +{number} MB a step and {number} kB a token of context; "
        rf"memory bandwidth {number} GB/s\n",
        out,
    )
    assert err == f"bench: wrote {files[0]} and {files[1]}\n"
    figures = json.loads(files[0].read_text())
    assert [one["tokens"] for one in figures["prefill"]] == [16, 128]
    assert [one["context"] for one in figures["decode"]] == [16, 128]
    assert figures["model_bytes"] == size
    assert files[1].read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif("onnx" not in installed(), reason="no onnxruntime")
def test_another_engine(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (package / "model.tflite").unlink()
    file = write_onnx(Toy(capacity=40), package / "model.onnx", external=True)
    assert main([str(package), "--rounds", "1", "--tokens", "3", "--warm", "--engine", "onnx"]) == 0
    out, err = capsys.readouterr()
    size = file.stat().st_size + (package / "model.onnx.data").stat().st_size
    assert out.startswith(f"{package}: {size / 1e6:.1f} MB, 40 tokens of context, 1 thread\n")
    assert "engine    onnx (float32, 1 thread): requested by --engine\n" in out
    assert err == ""


def test_ratios() -> None:
    report = Report("p", "litert", 100_000_000, 2, 64, 20e9, 10_000_000, 1_000, None, 0.5, 150e6)
    report.prefill.append(Prefill(128, 0.5))
    report.decode.append(Decode(16, 0.001, 0.5))
    lines = list(report.lines())
    assert "load      0.50 s warm" in lines
    assert "prefill      128 tokens: first token after 500.0 ms, 256.0 tokens/s" in lines
    assert "decode    after      16: 1,000.0 tokens/s, 50% of the memory bandwidth" in lines
    assert "memory    150 MB at most, 1.50 times the file" in lines
    reads = "reads     10.0 MB a step and 1.0 kB a token of context; memory bandwidth 20.0 GB/s"
    assert reads in lines


@pytest.mark.parametrize(
    ("cache", "note"),
    [
        (32_000_000, "a step reads 10.0 MB, which stay in the processor's cache of 32 MB; its bandwidth"),
        (1_000_000, "a part of the 10.0 MB of a step stays in the processor's cache, or other processes"),
        (0, "what a step reads stays in the processor's cache"),
    ],
)
def test_speeds_beyond_the_memory_bandwidth_are_explained(cache: int, note: str) -> None:
    report = Report(
        "p", "litert", 100_000_000, 2, 64, 20e9, 10_000_000, 1_000, None, 0.5, processor_cache=cache
    )
    report.decode += [Decode(16, 0.001, 0.5), Decode(32, 0.0002, 2.29)]
    lines = list(report.lines())
    assert any(line.endswith("229% of the memory bandwidth") for line in lines)
    assert any(line.startswith(f"          above 100%: {note}") for line in lines)
    report.decode.pop()
    assert not any("above 100%" in line for line in report.lines())


def test_the_plot_shows_axes_from_zero_and_the_roofline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: drawn.append(figure))
    report = Report(
        str(tmp_path / "my-model"),
        "litert (int8): x",
        1,
        2,
        64,
        20e9,
        10_000_000,
        1_000,
        None,
        0.5,
        processor="CPU 7",
    )
    report.decode += [Decode(16, 0.001, 0.5), Decode(2048, 0.002, 0.3)]
    report.prefill += [Prefill(16, 0.01), Prefill(2048, 0.5)]
    report.plot(tmp_path / "x.png")
    (figure,) = drawn
    assert figure.get_suptitle() == "my-model on litert (int8)\nCPU 7"
    for axes in figure.axes:
        assert axes.get_xlim()[0] == axes.get_ylim()[0] == 0
        assert axes.get_xlabel()
        assert axes.get_ylabel() == "tokens per second"
        assert axes.get_legend() is not None
    decode = figure.axes[0]
    roofline = next(line for line in decode.get_lines() if "roofline" in line.get_label())
    assert roofline.get_ydata()[0] == pytest.approx(2000)
    assert max(roofline.get_ydata()) < decode.get_ylim()[1]


def test_the_files_have_default_names(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--rounds", "1", "--tokens", "1", "--contexts", "4", "--prompts", "4", "--warm"]
    assert main([str(package), *options, "--json", "--plot"]) == 0
    assert json.loads((tmp_path / "bench.json").read_text())["processor"]
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert main(["--json", str(package)]) == 2
    assert "is a folder: give PACKAGE before this flag" in capsys.readouterr().err


def test_each_length_is_begun_anew() -> None:
    engine = CountingEngine(64)
    firsts, steps = measure_round(engine, [5, 60], [1, 40], 4)
    assert list(firsts) == [5, 60]
    assert list(steps) == [1, 40]
    assert len(engine.fed) == 44
    assert engine.read == 5 + 60 + 1 + 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--contexts", "198", "--tokens", "3"], "a context of 198 tokens does not fit: the limit is 197"),
        (["--prompts", "201"], "a prompt of 201 tokens does not fit: the limit is 200"),
        (["--json", "/no/such/folder/x.json"], "/no/such/folder/x.json: no such folder"),
        (["--rounds", "0"], "'0' is not a positive integer"),
    ],
)
def test_wrong_usage(
    package: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main([str(package), *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("bench: ")
    assert err.count("\n") == 1
    assert message in err


def test_without_matplotlib(
    package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main([str(package), "--plot", "x.png"]) == 2
    assert capsys.readouterr().err == "bench: --plot needs matplotlib: pip install 'o2o[plot]'\n"
