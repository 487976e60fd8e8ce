"""`python -m runtime_py.perplexity`: against transformers, and as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from runtime_py.perplexity import main
from tests.runtime_py.tokenizers_on_disk import LLAMA, write_config, write_sentencepiece
from tests.runtime_py.toy import Toy
from tests.test_guide import DEMO
from tests.tinyllama import tflite_files
from tinyllama.demo.corpus import make_stories
from tinyllama.demo.held_out import SEED, held_out

VOCAB = 380  # of the trained tokenizer
TEXT = "Lily picked up a flower.\n\nthe dog was happy\nand sad\n"


@pytest.fixture(scope="module")
def demo(shared_directory: Path) -> Path:
    """A folder with the demo model as f32.tflite and int8.tflite, in caches that hold a story."""
    folder = shared_directory / "perplexity"
    with FileLock(f"{folder}.lock"), pytest.MonkeyPatch.context() as patch:
        if not folder.exists():
            folder.mkdir()
            patch.setattr(tflite_files, "CAPACITY", 128)
            tflite_files.write_tflite(DEMO, folder / "f32.tflite")
            tflite_files.write_tflite(DEMO, folder / "int8.tflite", recipe="dynamic_int8")
    return folder


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A toy with a tokenizer: caches of 6."""
    folder = write_config(write_sentencepiece(tmp_path / "package"), **LLAMA)
    (folder / "model.tflite").write_bytes(Toy(vocab=VOCAB, capacity=6).file)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    return file


def results(capsys: pytest.CaptureFixture[str], *argv: object) -> dict:
    assert main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def by_transformers(texts: list[str]) -> tuple[float, int]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()
    nats, tokens = 0.0, 0
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor([tokenizer.encode(text)[:129]])
            nats += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
            tokens += ids.shape[1] - 1
    return nats / tokens, tokens


def test_the_demo_model_predicts_as_in_transformers(demo, tmp_path, capsys):
    """Two stories with their ends, and text of another kind that is longer than the caches."""
    texts = [story.text + "</s>" for story in make_stories(2, SEED)]
    texts.append("Quantized weights need 8 bits,\nnot 32: " + "what is lost? " * 40)
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(texts))
    argv = [demo / "f32.tflite", demo / "int8.tflite", "--tokenizer", DEMO, "--text", file]
    report = results(capsys, *argv)
    nats, tokens = by_transformers(texts)
    f32, int8 = report["packages"]
    assert (report["tokens"], report["documents"]) == (tokens, 3)
    assert f32["nats"] == pytest.approx(nats, rel=1e-5)
    assert f32["perplexity"] == pytest.approx(np.exp(nats), rel=1e-5)
    assert f32["change"] == 0
    assert int8["nats"] != f32["nats"]
    assert int8["change"] == pytest.approx(int8["perplexity"] / f32["perplexity"] - 1)
    assert abs(int8["change"]) < 0.02
    assert main([*map(str, argv)]) == 0
    assert "1 cut to the 128 tokens that can be predicted" in capsys.readouterr().out


def test_held_out_stories_lose_what_the_training_report_says(demo, tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tinyllama.demo import train

    stories = 8
    file = tmp_path / "held_out.txt"
    file.write_text(held_out(stories))
    result = results(capsys, demo / "f32.tflite", "--tokenizer", DEMO, "--text", file)
    report = json.loads((DEMO / "training_report.json").read_text())["held_out"]
    assert report["seed"] == SEED
    # what the report's numbers were computed by, on these stories
    tokenizer = AutoTokenizer.from_pretrained(DEMO).backend_tokenizer
    loss = train.evaluate(AutoModelForCausalLM.from_pretrained(DEMO), tokenizer, make_stories(stories, SEED))
    assert result["packages"][0]["nats"] == pytest.approx(loss, abs=1e-5)
    assert result["packages"][0]["nats"] == pytest.approx(report["sample_loss"], abs=0.03)  # of 64 stories


def test_a_damaged_model_predicts_worse(demo, tmp_path, capsys):
    data = bytearray((demo / "f32.tflite").read_bytes())
    weights = np.frombuffer(data, np.float32, offset=len(data) - 400_000, count=100_000)
    weights[:] = -weights
    (tmp_path / "damaged.tflite").write_bytes(data)
    (tmp_path / "text.txt").write_text(held_out(1))
    files = demo / "f32.tflite", tmp_path / "damaged.tflite"
    report = results(capsys, *files, "--tokenizer", DEMO, "--text", tmp_path / "text.txt")
    assert report["packages"][1]["change"] > 1


def test_the_table(package, text, capsys):
    assert main([str(package), str(package), "--text", str(text)]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith(f"{text}: 2 documents, ")
    assert lines[0].endswith("2 cut to the 6 tokens that can be predicted")
    assert len(lines) == 4
    assert lines[3].startswith(str(package))
    assert lines[3].endswith("+0.00%")
    assert err == ""


def test_ids_need_no_tokenizer(tmp_path, capsys):
    toy = Toy()
    (tmp_path / "toy.tflite").write_bytes(toy.file)
    (tmp_path / "ids.txt").write_text("1 2 3\n\n4 5 6 7\n")
    report = results(capsys, tmp_path / "toy.tflite", "--ids", tmp_path / "ids.txt", "--max-tokens", 4)
    assert (report["documents"], report["tokens"]) == (2, 4)
    nats = [
        np.log(np.exp(toy.logits(given)).sum()) - toy.logits(given)[id]
        for given, id in (([1], 2), ([1, 2], 3), ([4], 5), ([4, 5], 6))
    ]
    assert report["packages"][0]["nats"] == pytest.approx(np.mean(nats), rel=1e-5)


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["nowhere", "--text", "text.txt"], 1, "nowhere: no such folder"),
        (["package"], 2, "one of the arguments --text --ids is required"),
        (["package", "--text", "nowhere.txt"], 1, "nowhere.txt: No such file"),
        (["package", "--text", "blank.txt"], 2, "blank.txt has no document of two tokens or more"),
        (["package", "--text", "package/model.tflite"], 2, "model.tflite is not UTF-8 text"),
        (["package", "--ids", "text.txt"], 2, "text.txt, line 1: not a list of token ids (invalid literal"),
        (["package", "--ids", "minus.txt"], 2, "minus.txt, line 2: -3 is not a token id"),
        (["package", "--ids", "beyond.txt"], 1, "has token ids below 380, the dataset has 400"),
        (["package", "--text", "text.txt", "--max-tokens", "0"], 2, "is not a positive integer"),
        (["other.tflite", "--text", "text.txt"], 1, "has no tokenizer.json and no tokenizer.model"),
        (["package", "other", "--text", "text.txt"], 1, "have different tokenizers: their"),
        (["package", "--text", "text.txt", "--tokenizer", "none"], 1, "none: no such folder"),
    ],
)
def test_errors_are_one_line(argv, code, message, package, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("blank.txt").write_text("\n\n \n")
    Path("minus.txt").write_text("1 2\n1 -3\n")
    Path("beyond.txt").write_text("1 400\n")
    Path("other.tflite").write_bytes((package / "model.tflite").read_bytes())
    other = write_config(Path("other"), **LLAMA | {"add_bos_token": False})
    for name in ("tokenizer.model", "model.tflite"):
        (other / name).write_bytes((package / name).read_bytes())
    assert main(argv) == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("perplexity: ")
    assert message in err


def test_held_out_stories_are_always_the_same(run_module):
    done = run_module("tinyllama.demo.held_out", "--stories", 3)
    assert done.returncode == 0
    assert done.stdout == held_out(3)
    assert held_out(5).startswith(held_out(3).rstrip("\n"))
    assert held_out(3).count("</s>") == 3
    assert run_module("tinyllama.demo.held_out", "--stories", 0).returncode == 2
