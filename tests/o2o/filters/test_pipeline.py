"""Pipelines in one process: the bytes of the same processes, and their errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from o2o import filters, formats
from o2o.cli.pipelines import parse
from o2o.errors import UsageError
from o2o.filters import pipeline
from tests.o2o.graphs import Graph, decoder, weights
from tests.o2o.language_model_graphs import language_model

PIPELINES = [
    "gc < raw.circle | downcast.input_ids | rename.io.remove_prefix input_ | gc > out",
    "gc < raw.circle | fuse.fc | lower.litert | gc | raise.circle | quantize.weights > out",
    "quantize.weights < large.circle | gc | fuse.fc | lower.litert > out",
    "quantize.weights < large.circle --recipe dynamic_int4_block32 | lower.litert | gc | fuse.fc > out",
    "transpose.io.kvcache < language.circle | downcast.input_ids | lower.litert | sign.ai_edge | gc > out",
    "gc < raw.circle > a.circle; merge.circles --sig-names a,b,c,d a.circle raw.circle | gc --check > out",
    "gc < raw.circle | merge.circles language.circle - --sig-names 'a;b;c;d' | gc > out",
    "gc raw.circle | reorder.output --by_id 1,0 | select.op --by_id 0-2 --signature decode -o out",
]


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    graph = Graph("large")
    x = graph.input("x", [1, 128])
    y = graph.fc(x, graph.constant("w", weights(64, 128)), "y")
    graph.output(y, graph.fc(x, graph.constant("v", weights(64, 128, seed=1)), "z"))
    for name, model in (("raw", decoder()), ("language", language_model()), ("large", graph.model())):
        formats.save(model, f"{name}.circle")


def run_one_by_one(text: str) -> None:
    """Run each command of the pipelines by itself, with files between them."""
    for one in parse(text):
        before = one.input
        for number, (name, *arguments) in enumerate(one.stages):
            last = number == len(one.stages) - 1
            output = one.output if last and one.output else f"stage{number}"
            words = [*arguments, *(() if "-o" in arguments else ("-o", output))]
            if before is not None and "-" in words:
                words[words.index("-")] = before
            elif before is not None:
                words.append(before)
            module = filters.find(name)
            assert module is not None
            assert filters.load(module).main(words) == 0
            before = output


@pytest.mark.parametrize("text", PIPELINES)
def test_the_bytes_are_those_of_separate_runs(text: str, tmp_path: Path) -> None:
    run_one_by_one(text)
    expected = Path("out").read_bytes()
    Path("out").unlink()
    assert pipeline.run(parse(text)) == 0
    out = Path("out").read_bytes()
    if "merge.circles language.circle -" in text:  # a history names merged files; stdin is `-`
        assert formats.loads(out).history != formats.loads(expected).history
        out, expected = (_without_history(data) for data in (out, expected))
    assert out == expected


def _without_history(data: bytes) -> bytes:
    model = formats.loads(data)
    model.history.clear()
    return formats.dumps(model)


def test_messages_are_those_of_the_filters(capsys: pytest.CaptureFixture[str]) -> None:
    assert pipeline.run(parse("gc < raw.circle | quantize.weights | gc > out")) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["gc.py", "quantize.weights.py", "gc.py"]
    assert pipeline.run(parse("gc < raw.circle | gc > out"), quiet=True) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gc < raw.circle | gx > out", "there is no filter 'gx'"),
        ("gc < raw.circle | fuse.attentoin > out", "did you mean fuse.attention"),
        ("gc --bogus < raw.circle > out", "gc.py: unrecognized arguments: --bogus"),
        ("gc < raw.circle | reorder.output > out", "reorder.output.py: "),
        ("gc < raw.circle | gc raw.circle > out", "names its input"),
        ("gc -o x < raw.circle | gc > out", "only the last filter writes a file"),
        ("gc < raw.circle | gc -o x > out", "two outputs"),
        ("gc < raw.circle | inspect.model | gc > out", "inspect.model.py writes no model"),
    ],
)
def test_wrong_pipelines_are_refused_before_anything_is_read(text: str, message: str) -> None:
    before = sorted(Path().iterdir())
    with pytest.raises(UsageError, match=message):
        pipeline.run(parse(f"gc < raw.circle > first\n{text}"))
    assert sorted(Path().iterdir()) == before


def test_a_filter_that_fails_ends_the_pipelines(capsys: pytest.CaptureFixture[str]) -> None:
    text = "gc < raw.circle | rename.io input nothing=x | gc > out\ngc < raw.circle > second"
    assert pipeline.run(parse(text)) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("rename.io.py: ")
    assert not Path("out").exists()
    assert not Path("second").exists()


@pytest.mark.parametrize("contents", [b"", b"\x89PNG\r\n\x1a\n", formats.dumps(decoder())[:500]])
def test_wrong_input_is_one_line_of_the_first_filter(
    contents: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("wrong").write_bytes(contents)
    assert pipeline.run(parse("gc < wrong | gc > out")) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gc.py: wrong")
    assert not Path("out").exists()


def test_onnx_goes_on_in_a_pipeline() -> None:
    from tests.o2o.lower.onnx.decoders import plain

    formats.save(plain(), "decode.circle")
    assert pipeline.run(parse("gc < decode.circle | lower.onnx > out.onnx")) == 0
    assert Path("out.onnx").stat().st_size
    assert pipeline.run(parse("gc < decode.circle | lower.onnx | gc > out2.onnx")) == 0
    assert [e["filter"] for e in formats.load("out2.onnx").history[-2:]] == ["lower.onnx.py", "gc.py"]
