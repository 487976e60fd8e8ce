"""Options that exclude each other are refused before torch is imported and before anything is written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from export.config import CheckpointConfig
from export.options import ExportOptions, check_attention, check_length, parse_attention
from o2o.errors import UsageError
from o2o.operators.core_attention import FlashBlockSizes
from tests.checkpoints import GROUPED, write_checkpoint
from tests.conftest import ROOT


def config_of(**fields: Any) -> CheckpointConfig:
    return CheckpointConfig({"model_type": "llama", **GROUPED, **fields}, "folder")


@pytest.mark.parametrize(
    ("name", "kind", "blocks"),
    [
        ("eager", "eager", None),
        ("grouped", "grouped", None),
        ("flash", "flash", None),
        ("flash:", "flash", None),
        ("flash:4,8", "flash", FlashBlockSizes(4, 8)),
        ("blocked", "flash", None),
    ],
)
def test_the_name_of_an_attention_implementation(
    name: str, kind: str, blocks: FlashBlockSizes | None
) -> None:
    assert parse_attention(name) == (kind, blocks)


@pytest.mark.parametrize("name", ["flash:3", "flash:a,b", "flash:0,4"])
def test_blocks_that_cannot_be(name: str) -> None:
    with pytest.raises(UsageError, match=f"--attn-implementation {name}: .*block"):
        parse_attention(name)


@pytest.mark.parametrize("name", ["grouped", "flash", "flash:4,8", "blocked"])
def test_attention_as_one_operator_needs_static_caches(name: str) -> None:
    with pytest.raises(UsageError, match=f"--attn-implementation {name} needs --cache static"):
        ExportOptions(64, attn_implementation=name).check(config_of())
    ExportOptions(64, attn_implementation=name, cache="static").check(config_of())
    ExportOptions(64, attn_implementation=name, cache="static").check(config_of(model_type="gemma2"))
    check_attention(name, None)


def test_a_context_that_the_model_cannot_see() -> None:
    check_length(config_of(), 64)
    with pytest.raises(UsageError, match="--kv_len 65: this llama model has 64 positions: use 64 or less"):
        check_length(config_of(), 65, "--kv_len")
    check_length(config_of(sliding_window=16), 64)
    check_length(config_of(max_position_embeddings=None), 10**9)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fields = GROUPED | {"num_hidden_layers": 1, "sliding_window": 32}
    return write_checkpoint(tmp_path_factory.mktemp("small"), model_type="mistral", **fields)


EXPORT = ["export.__main__", "CHECKPOINT", "-o", "out"]
SEED = ["tinyllama.tinyllama", "--model", "CHECKPOINT", "--mode"]
PACKAGE = ["tinyllama.pipeline", "--model", "CHECKPOINT", "--package", "out"]
CONVERT = ["tinyllama.convert_to_tflite", "--checkpoint_path=CHECKPOINT", "--output_path=."]


CASES = [
    ([*EXPORT, "--max-length=16", "--attn-implementation=grouped"], "grouped needs --cache static"),
    ([*EXPORT, "--max-length=16", "--attn-implementation=flash:2,0", "--cache=static"], "at least one"),
    ([*EXPORT, "--max-length=65"], "this mistral model has 64 positions"),
    ([*EXPORT, "--max-length=16", "--prefill-lengths=17"], "17 tokens do not fit"),
    ([*EXPORT, "--max-length=16", "--jobs=0"], "is not a positive integer"),
    ([*SEED, "decode", "--attn-implementation=grouped"], "grouped needs --cache static"),
    ([*SEED, "prefill", "--max-length=65"], "this mistral model has 64 positions"),
    ([*PACKAGE, "--max-length=65"], "this mistral model has 64 positions"),
    ([*PACKAGE, "--max-length=65", "--format=tflite"], "this mistral model has 64 positions"),
    ([*PACKAGE, "--format=tflite", "--cache=concat"], "--cache concat needs --format circle"),
    ([*PACKAGE, "--format=tflite", "--dtype=float16"], "give --quantize float16 instead of --dtype"),
    ([*PACKAGE, "--quantize=float16"], "--quantize needs --format tflite"),
    ([*PACKAGE, "--package="], "the folder's name is empty"),
    ([*CONVERT, "--kv_cache_max_len=65"], "this mistral model has 64 positions"),
    ([*CONVERT, "--kv_cache_buckets=64", "--prefill_seq_lens=8"], "give capacities from 1 to"),
]

PROGRAM = """
import contextlib, importlib, io, json, os, sys
results = []
for module, arguments, folder in json.load(sys.stdin):
    os.makedirs(folder)
    os.chdir(folder)
    with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(errors):
        code = importlib.import_module(module).main(arguments)
    heavy = sorted({'torch', 'transformers', 'tico'} & set(sys.modules))
    results.append([code, errors.getvalue(), heavy, os.listdir()])
json.dump(results, sys.stdout)
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> list[list[Any]]:
    """Of each case: exit code, messages, heavy modules that are imported, files that were written."""
    folder = tmp_path_factory.mktemp("refused")
    calls = []
    for number, (command, _) in enumerate(CASES):
        module, *arguments = [argument.replace("CHECKPOINT", str(checkpoint)) for argument in command]
        calls.append([module, arguments, str(folder / str(number))])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(calls),
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("number", "message"), list(enumerate(message for _, message in CASES)))
def test_refused_before_torch_is_imported(results: list[list[Any]], number: int, message: str) -> None:
    """All cases run in one process: the first that imports torch is the first that fails."""
    code, errors, heavy, files = results[number]
    assert code == 2, errors
    assert message in errors
    assert errors.count("\n") == 1
    assert heavy == []
    assert files == []


def test_rotary_embeddings_that_grow_have_no_longest_context() -> None:
    check_length(config_of(rope_scaling={"type": "dynamic", "factor": 2.0}), 65)
    with pytest.raises(UsageError, match="has 64 positions: use 64 or less"):
        check_length(config_of(rope_scaling={"type": "linear", "factor": 2.0}), 65)
