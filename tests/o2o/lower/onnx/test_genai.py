"""Models for onnxruntime-genai: the same logits with a mask in place of the position, and its settings."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from o2o import formats
from o2o.filters import lower_onnx
from o2o.model import Model
from tests.o2o.lower.onnx.decoders import Shape, answers, decoder
from tests.tolerances import assert_close

pytest.importorskip("onnxruntime")

from runtime_py.engines.onnx.decoder.engine import DecoderEngine

IDS = [3, 1, 4, 1, 5, 9, 2, 6]
CONFIG = {"hidden_size": 32, "num_attention_heads": 4, "eos_token_id": 7, "bos_token_id": 1}
SHAPES = {"grouped": Shape(), "of fixed capacity": Shape(N=16, K=16, H=4)}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    generation = {"eos_token_id": [7, 8], "do_sample": True, "top_p": 0.9}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line


def lowered(model: Model, checkpoint: Path, *flags: str) -> Path:
    source, target = checkpoint.parent / "in.circle", checkpoint.parent / "genai" / "model.onnx"
    target.parent.mkdir()
    formats.save(model, source)
    arguments = ["--form", "ort", "--genai", str(checkpoint), *flags, str(source), "-o", str(target)]
    assert lower_onnx.main(arguments) == 0
    onnx.checker.check_model(str(target), full_check=True)
    return target


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_those_of_circle(name: str, checkpoint: Path) -> None:
    expected = answers(decoder(SHAPES[name]), IDS)
    with closing(DecoderEngine(lowered(decoder(SHAPES[name]), checkpoint, "--check"))) as engine:
        assert engine.capacity == Shape().S
        session = engine.open_session()
        assert_close(session.prefill(IDS[:5]), np.asarray(expected[4]).reshape(-1))
        for position in range(5, len(IDS)):
            step = session.decode(IDS[position], position)
            assert_close(step, np.asarray(expected[position]).reshape(-1))


def test_names_and_settings(checkpoint: Path) -> None:
    model = lowered(decoder(Shape()), checkpoint)
    graph = onnx.load(model, load_external_data=False).graph
    dims = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    shape = Shape()
    assert dims["input_ids"] == [1, "sequence_length"]
    assert dims["attention_mask"] == [1, "total_sequence_length"]
    assert dims["past_key_values.1.value"] == [1, shape.K, "past_sequence_length", shape.H]
    assert dims["present.0.key"] == [1, shape.K, "total_sequence_length", shape.H]
    config: dict[str, Any] = json.loads((model.parent / "genai_config.json").read_text())
    of_model, search = config["model"], config["search"]
    decoder_config = of_model["decoder"]
    assert (of_model["bos_token_id"], of_model["eos_token_id"], of_model["pad_token_id"]) == (1, [7, 8], 7)
    assert (of_model["context_length"], of_model["vocab_size"]) == (shape.S, shape.V)
    assert [decoder_config[name] for name in ("num_key_value_heads", "num_attention_heads", "head_size")] == [
        shape.K,
        shape.N,
        shape.H,
    ]
    for names in (decoder_config["inputs"], decoder_config["outputs"]):
        assert {name.replace("%d", "0") for name in names.values()} <= dims.keys()
    assert (search["do_sample"], search["top_p"], search["max_length"]) == (True, 0.9, shape.S)
    assert (model.parent / "tokenizer.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--form", "ort"], "give --form ort and -o FILE too"),
        (["-o", "x.onnx"], "give --form ort and -o FILE too"),
    ],
)
def test_wrong_usage(
    flags: list[str], message: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lower_onnx.main(["--genai", str(checkpoint), *flags, "in.circle"]) == 2
    assert message in refusal(capsys)


def test_a_folder_without_a_config(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoint / "config.json").unlink()
    source = checkpoint.parent / "in.circle"
    formats.save(decoder(Shape()), source)
    output = checkpoint.parent / "out.onnx"
    assert lower_onnx.main(["--form", "ort", "--genai", str(checkpoint), str(source), "-o", str(output)]) == 2
    assert "give the folder of the checkpoint" in refusal(capsys)
    assert not output.exists()


def test_onnxruntime_genai_chooses_the_same_tokens(checkpoint: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    model = genai.Model(str(lowered(decoder(Shape()), checkpoint).parent))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(IDS[:3])
    ids = list(IDS[:3])
    for _ in range(4):
        generator.generate_next_token()
        (token,) = generator.get_next_tokens()
        assert token == np.argmax(answers(decoder(Shape()), ids)[-1])
        ids.append(int(token))
