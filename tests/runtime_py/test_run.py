"""`python -m runtime_py.run`, as a user meets it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime_py.engines import prepared_artifacts
from runtime_py.engines.registry import installed
from runtime_py.run import main
from tests.conftest import ROOT
from tests.processes import spawn
from tests.runtime_py.tokenizers_on_disk import LLAMA, write_config, write_sentencepiece
from tests.runtime_py.toy import Toy
from tests.runtime_py.toy_onnx import write_onnx

VOCAB = 380  # of the trained tokenizer
FULL = "run: the context is full: the KV caches hold 24 tokens; convert the model with a larger --max-length"


@pytest.fixture(scope="module")
def toy() -> Toy:
    return Toy(vocab=VOCAB, prefill_length=12, capacity=24)


@pytest.fixture
def package(tmp_path, toy, tokenizer_files) -> Path:
    folder = tmp_path / "package"
    folder.mkdir()
    for path in tokenizer_files.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "model.tflite").write_bytes(toy.file)
    (folder / "config.json").write_text('{"model_type": "llama", "eos_token_id": 2}')
    return folder


@pytest.fixture(scope="module")
def tokenizer_files(tmp_path_factory) -> Path:
    return write_config(write_sentencepiece(tmp_path_factory.mktemp("tokenizer")), **LLAMA)


def expected(toy: Toy, package: Path, prompt: str, count: int | None = None) -> tuple[list[int], str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(package)
    ids = tokenizer.encode(prompt)
    new = toy.greedy(ids, count or toy.capacity + 1 - len(ids))
    new = new[: new.index(2) + 1] if 2 in new else new
    return new, tokenizer.decode(new, skip_special_tokens=True)


def test_prints_prompt_ids_and_text(run_module, toy, package):
    ids, text = expected(toy, package, "Lily picked up a flower.")
    done = run_module("runtime_py.run", package)
    assert done.returncode == 0
    assert done.stderr == ("" if 2 in ids else f"{FULL} for longer texts\n")
    generated = f"generated: {{ {', '.join(map(str, ids))} }}"
    assert done.stdout == f"prompt: Lily picked up a flower.\n{generated}\ndetokenized: {text}\n"


def test_a_model_file_beside_its_tokenizer_or_elsewhere(toy, package, tmp_path, capsys):
    ids, _ = expected(toy, package, "a dog", 4)
    model = package / "model.tflite"
    options = ["--prompt", "a dog", "--max-new-tokens", "4"]
    assert main([str(model), *options]) == 0
    (tmp_path / "other.tflite").write_bytes(model.read_bytes())
    assert main([str(tmp_path / "other.tflite"), "--tokenizer", str(package), *options]) == 0
    line = f"generated: {{ {', '.join(map(str, ids))} }}"
    out, err = capsys.readouterr()
    assert out.count(line) == 2
    assert err == ""
    assert main([str(tmp_path / "other.tflite"), *options]) == 1
    assert "or give the checkpoint's folder with --tokenizer" in one_line(capsys)


@pytest.mark.parametrize("contract", [True, False])
def test_ai_edges_interface(package, capsys, contract):
    """Also a file without a contract, by the names of its tensors."""
    toy = Toy(vocab=VOCAB, prefill_length=0, cached_lengths=[4, 8], capacity=24, ai_edge=True)
    (package / "model.tflite").write_bytes(toy.file if contract else toy.file_without_contract)
    ids, text = expected(toy, package, "Lily picked up a flower.")
    assert main([str(package), "--stats"]) == 0
    out, err = capsys.readouterr()
    assert f"generated: {{ {', '.join(map(str, ids))} }}\ndetokenized: {text}\n" in out
    assert "(10 tokens in 8 + 2 x 1)" in err or "(10 tokens in 8 + 4 + 1)" in err


def test_streams_the_same_text(toy, package, capsys):
    ids, text = expected(toy, package, "a dog", 9)
    assert main([str(package), "--prompt", "a dog", "--max-new-tokens", "9", "--stream"]) == 0
    listed = ", ".join(map(str, ids))
    assert capsys.readouterr().out == f"prompt: a dog\ndetokenized: {text}\ngenerated: {{ {listed} }}\n"


def test_stats_are_said_on_stderr(package, capfd):
    assert main([str(package), "--stats", "--max-new-tokens", "4", "--threads", "1"]) == 0
    out, err = capfd.readouterr()
    assert out.count("\n") == 3
    number = r"[\d.]+"
    assert re.fullmatch(
        rf"engine:  litert \(float32, 1 thread\): the only engine for \.tflite files\n"
        rf"load:    {number} s\n"
        rf"prefill: {number} tokens/s \(10 tokens in 12\), first token after {number} ms\n"
        rf"decode:  {number} tokens/s \(3 steps\)\n"
        rf"memory:  \d+ MB at most\n",
        err,
    )


def test_one_token(toy, package, capsys):
    ids, _ = expected(toy, package, "a dog", 1)
    assert main([str(package), "--prompt", "a dog", "--max-new-tokens", "1", "--stats"]) == 0
    assert f"generated: {{ {ids[0]} }}\n" in capsys.readouterr().out


def test_empty_prompt_is_begin_of_sequence(toy, package, capsys):
    assert main([str(package), "--prompt", ""]) == 0
    assert f"generated: {{ {toy.greedy([1], 1)[0]}" in capsys.readouterr().out


def test_empty_prompt_without_begin_of_sequence(package, capsys):
    write_config(package, **LLAMA | {"add_bos_token": False})
    assert main([str(package), "--prompt", ""]) == 2
    assert "the prompt is empty" in one_line(capsys)


def test_prompt_too_long(package, capsys):
    assert main([str(package), "--prompt", "a dog " * 20]) == 2
    message = one_line(capsys)
    reason = r"has \d+ tokens, the KV caches hold 24: shorten it, or convert .* --max-length\n$"
    assert re.search(reason, message)


def one_line(capsys) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("run: ")
    assert err.count("\n") == 1
    return err


PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(100)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.circle", PNG, "model.circle"),
        ("model.circle", b"", "model.circle"),
        ("model.tflite", PNG, "model.tflite"),
        ("model.tflite", None, "has no model.circle"),
        ("tokenizer.model", None, "no tokenizer.json and no tokenizer.model"),
        ("tokenizer.json", b"{", "tokenizer.json is not a tokenizer"),
        ("config.json", b"]", "config.json is not JSON"),
    ],
)
def test_wrong_files(package, capsys, name, content, message):
    if content is None:
        (package / name).unlink()
    else:
        (package / name).write_bytes(content)
    assert main([str(package)]) == 1
    assert message in one_line(capsys)


def test_truncated_model(package, toy, capsys):
    for length in (10, 1000, len(toy.file) // 2, len(toy.file) - 40):
        (package / "model.tflite").write_bytes(toy.file[:length])
        assert main([str(package)]) == 1
        assert "model.tflite" in one_line(capsys)


def test_tokenizer_of_another_model(package, capsys):
    (package / "model.tflite").write_bytes(Toy(vocab=100).file)
    assert main([str(package)]) == 1
    assert "the tokenizer has 380 ids, the model 100" in one_line(capsys)


def test_no_such_folder_and_no_folder(package, capsys):
    assert main([str(package / "nowhere")]) == 1
    assert "no such folder" in one_line(capsys)
    assert main([str(package / "nowhere.tflite")]) == 1
    assert "no such file" in one_line(capsys)
    assert main([str(package / "config.json")]) == 1
    assert "is not a .circle or .tflite or .onnx or .litertlm file" in one_line(capsys)


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["x", "y"],
        ["x", "--max-new-tokens", "0"],
        ["x", "--max-new-tokens", "two"],
        ["x", "--threads", "-1"],
        ["x", "--prompt", "\udcff"],
        ["x", "--top-k", "some"],
        ["x", "--engine", "steam"],
    ],
)
def test_wrong_usage(args, capsys):
    assert main(args) == 2
    assert "--help explains" in one_line(capsys)


def test_numbers_out_of_range(package, capsys):
    assert main([str(package), "--top-p", "2"]) == 2
    assert "top_p is 2: it must be a number from 0 to 1" in one_line(capsys)


def test_by_chance_but_the_same_with_the_seed(package, capsys):
    def output(*options: str) -> tuple[str, str]:
        assert main([str(package), "--prompt", "a dog", "--max-new-tokens", "12", *options]) == 0
        return capsys.readouterr()

    out, err = output("--temperature", "3", "--stats")
    seed = re.search(r"run: --seed (\d+) repeats this text\n", err)
    assert seed
    assert output("--temperature", "3", "--seed", seed[1]) == (out, "")
    assert output("--temperature", "3", "--seed", seed[1] + "1")[0] != out != output()[0]
    assert output("--top-k", "1", "--seed", "1") == output("--temperature", "0")


def test_where_a_text_ends(toy, package, capsys):
    ids, text = expected(toy, package, "a dog", 9)
    word = text.split()[1]
    command = [str(package), "--prompt", "a dog"]
    assert main([*command, "--stop", "nowhere", "--stop", word]) == 0
    assert f"detokenized: {text[: text.index(word)]}\n" in capsys.readouterr().out
    assert main([*command, "--stop-token", "379", "--stop-token", str(ids[4])]) == 0
    stopped = ids[: ids.index(ids[4]) + 1]
    assert f"generated: {{ {', '.join(map(str, stopped))} }}\n" in capsys.readouterr().out


def endless(package: Path) -> None:
    """Give `package` a model with a text so long that only a signal ends it."""
    long = Toy(vocab=VOCAB, prefill_length=12, capacity=200_000)
    (package / "model.tflite").write_bytes(long.file)
    (package / "config.json").write_text("{}")


def test_closed_pipe_is_quiet(package):
    endless(package)
    command = f"{sys.executable} -m runtime_py.run {package} --stream | head -n 1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "prompt: Lily picked up a flower.\n"
    assert done.stderr == ""


def test_an_interrupt_ends_the_text(package):
    """Ctrl-C in the middle of a stream that would go on for long."""
    endless(package)
    command = [sys.executable, "-m", "runtime_py.run", str(package), "--stream"]
    with spawn(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert os.read(process.stdout.fileno(), 100)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (130, b"run: interrupted\n")
        *_, generated = out.decode().splitlines()
        assert generated.startswith("generated: { ")
        assert generated.endswith(" }"), "the line is complete"


def test_a_terminal_that_lacks_the_characters(run_module, package):
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = run_module(
        "runtime_py.run", package, "--prompt", "caf\u00e9", "--max-new-tokens", 2, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("prompt: caf?\n")


def test_torch_is_never_imported(run_module, package):
    code = (
        "import sys; from runtime_py.run import main; main(sys.argv[1:]);"
        "print(sorted({'torch', 'transformers', 'tico'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(package)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_generation_config_wins(toy, package, capsys):
    ids, _ = expected(toy, package, "a dog", 6)
    (package / "generation_config.json").write_text(json.dumps({"eos_token_id": [379, ids[3]]}))
    assert main([str(package), "--prompt", "a dog"]) == 0
    cut = ids[: ids.index(ids[3]) + 1]
    assert f"generated: {{ {', '.join(map(str, cut))} }}\n" in capsys.readouterr().out


def run_tokens(package: Path, capsys, *options: str) -> list[int]:
    """The generated ids of a prompt."""
    assert main([str(package), "--prompt", "a dog", *options]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return [int(token) for token in re.search(r"generated: \{ (.*) \}\n", out)[1].split(", ")]


def write_settings(package: Path, **settings: object) -> None:
    (package / "generation_config.json").write_text(json.dumps(settings))


def test_the_settings_of_the_checkpoint_choose(toy, package, capsys):
    """A sampling checkpoint samples; flags replace single settings; --greedy replaces all."""
    options = ["--max-new-tokens", "9"]
    greedy = expected(toy, package, "a dog", 9)[0]
    write_settings(package, do_sample=True, temperature=5.0, top_k=0, repetition_penalty=3.0)
    assert main([str(package), "--prompt", "a dog", *options, "--stats"]) == 0
    out, err = capsys.readouterr()
    seed = re.search(r"run: --seed (\d+) repeats this text\n", err)[1]
    assert main([str(package), "--prompt", "a dog", *options, "--seed", seed]) == 0
    assert capsys.readouterr().out == out
    assert run_tokens(package, capsys, *options, "--seed", "1") != greedy
    assert run_tokens(package, capsys, *options, "--greedy") == greedy
    assert run_tokens(package, capsys, *options, "--greedy", "--seed", "1", "--logit-bias", "9=99") == greedy
    penalized = run_tokens(package, capsys, *options, "--temperature", "0")
    assert penalized != greedy
    assert run_tokens(package, capsys, *options, "--top-k", "1") == penalized
    assert run_tokens(package, capsys, *options, "--top-k", "1", "--repetition-penalty", "1") == greedy
    write_settings(package, max_length=9, suppress_tokens=[greedy[0]])
    assert greedy[0] not in run_tokens(package, capsys)
    assert len(run_tokens(package, capsys)) == 9 - len(expected_ids(package))
    assert len(run_tokens(package, capsys, "--max-new-tokens", "12")) == 12


def expected_ids(package: Path) -> list[int]:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(package).encode("a dog")


def test_penalties_and_biases(toy, package, capsys):
    (package / "config.json").write_text("{}")
    first, second, *_ = expected(toy, package, "a dog", 9)[0]
    options = ["--max-new-tokens", "9"]
    assert first not in run_tokens(package, capsys, *options, "--logit-bias", f"{first}=-inf")
    assert run_tokens(package, capsys, *options, "--logit-bias", f"3=-1,{second}=5000") == [second] * 9
    assert (
        run_tokens(package, capsys, *options, "--logit-bias", "7=5000", "--logit-bias", "8=6000") == [8] * 9
    )
    penalty = ["--logit-bias", "7=5000,8=4900", "--presence-penalty", "1000"]
    assert run_tokens(package, capsys, *options, *penalty)[:2] == [7, 8]
    assert len(set(run_tokens(package, capsys, *options, "--frequency-penalty", "1000"))) == 9
    assert len(set(run_tokens(package, capsys, *options, "--no-repeat-ngram-size", "1"))) == 9
    stop = ["--logit-bias", "7=5000"]
    write_settings(package, eos_token_id=7)
    assert run_tokens(package, capsys, *stop) == [7]
    longer = run_tokens(package, capsys, *stop, "--min-new-tokens", "4")
    assert (longer.index(7), len(longer)) == (4, 5)
    assert main([str(package), "--logit-bias", "7"]) == 2
    assert "--logit-bias: '7' is not a list such as 12=-1.5,7=-inf" in one_line(capsys)
    assert main([str(package), "--logit-bias", "9999=1"]) == 2
    assert "logit_bias has the token id 9999, the model has ids below 380" in one_line(capsys)
    assert main([str(package), "--logit-bias", "7=inf"]) == 2
    assert "logit_bias is {7: inf}" in one_line(capsys)


def test_settings_that_are_not_supported_or_damaged(package, capsys):
    write_settings(package, num_beams=4, penalty_alpha=0.6, cache_implementation="static", unknown=[1])
    command = [str(package), "--prompt", "a dog", "--max-new-tokens", "2"]
    for _ in range(2):
        assert main(command) == 0
        message = "not supported, and ignored: num_beams, penalty_alpha"
        assert capsys.readouterr().err == f"run: {package / 'generation_config.json'}: {message}\n"
    assert main([*command, "--greedy"]) == 0
    assert capsys.readouterr().err == ""
    write_settings(package, temperature="hot")
    assert main(command) == 1
    assert "generation_config.json: temperature is 'hot': it must be a number" in one_line(capsys)
    write_settings(package, forced_eos_token_id=9999)
    assert main(command) == 1
    assert "generation_config.json: forced_eos_token_id has the token id 9999" in one_line(capsys)
    write_settings(package, max_length=2)
    assert main(command[:3]) == 2
    assert "max_length in" in one_line(capsys)
    write_settings(package, suppress_tokens=list(range(VOCAB)))
    assert main(command) == 1
    assert "no token can be chosen" in one_line(capsys)


def test_log_probabilities(toy, package, capsys):
    import numpy as np

    ids, text = expected(toy, package, "a dog", 5)
    command = [str(package), "--prompt", "a dog", "--max-new-tokens", "5"]
    assert main(command) == 0
    plain = capsys.readouterr().out
    assert main([*command, "--log-probabilities", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(plain)
    context = expected_ids(package)
    lines = [json.loads(line) for line in out.removeprefix(plain).splitlines()]
    assert [line["id"] for line in lines] == ids
    assert "".join(line["text"] for line in lines).strip() == text.strip()
    for line in lines:
        logits = toy.logits(context).astype(np.float64)
        log_probabilities = logits - np.log(np.exp(logits).sum())
        best = np.argsort(-log_probabilities)[:2]
        assert [one["id"] for one in line["top"]] == best.tolist()
        found = [line["log_probability"], *(one["log_probability"] for one in line["top"])]
        np.testing.assert_allclose(found, log_probabilities[[line["id"], *best]], atol=1e-4)
        context.append(line["id"])
    assert main([*command, "--log-probabilities", "-1"]) == 2
    assert "log_probabilities is -1" in one_line(capsys)
    assert main([*command, "--log-probabilities", "1", "--chat"]) == 2
    assert "--log-probabilities does not go with --chat" in one_line(capsys)


@pytest.mark.skipif("onnx" not in installed(), reason="no onnxruntime")
def test_an_onnx_file(toy, package, capfd):
    (package / "model.tflite").unlink()
    write_onnx(toy, package / "model.onnx")
    ids, text = expected(toy, package, "a dog", 9)
    assert main([str(package), "--prompt", "a dog", "--max-new-tokens", "9", "--stats"]) == 0
    out, err = capfd.readouterr()
    assert f"generated: {{ {', '.join(map(str, ids))} }}\ndetokenized: {text}\n" in out
    assert err.startswith("engine:  onnx (float32, 1 thread): the only engine for .onnx files\nload: ")


@pytest.mark.parametrize("engine", ["onnx", "onert"])
def test_an_engine_that_cannot(package, capsys, engine):
    assert main([str(package), "--engine", engine]) == 2
    assert f"model.tflite: a .tflite file runs on litert, not on {engine}: give the Circle file" in one_line(
        capsys
    )


def test_what_is_kept_of_a_big_model(toy, package, capfd, monkeypatch, tmp_path):
    monkeypatch.setattr(prepared_artifacts, "MIN_BYTES", 0)
    monkeypatch.setenv("O2O_CACHE", str(tmp_path / "cache"))
    command = [str(package), "--max-new-tokens", "4"]
    assert main([*command, "--no-cache"]) == 0
    out, err = capfd.readouterr()
    assert (err, (tmp_path / "cache").exists()) == ("", False)
    assert main(command) == 0
    message = f"run: packing the weights once: up to 1 MB into {tmp_path / 'cache'}\n"
    assert capfd.readouterr() == (out, message)
    assert main(command) == 0
    assert capfd.readouterr() == (out, "")
