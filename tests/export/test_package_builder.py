"""Packages appear as a whole, where they were asked for, and are not built twice from the same inputs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from export import known_answers, pipeline, shell
from export.circle_commands import circle_commands
from export.package_builder import PackageBuilder
from o2o.errors import ModelError, UsageError
from runtime_py.package import Package
from tests.checkpoints import GROUPED, write_checkpoint
from tests.conftest import ROOT
from tests.pipelines import in_process
from tests.test_guide import WITHOUT_TOKENIZER, assert_generates_the_same

GPT2 = {name: value for name, value in GROUPED.items() if name not in ("head_dim", "num_key_value_heads")}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("small"), **GROUPED | {"num_hidden_layers": 1})


class Log(list[str]):
    def __call__(self, line: str) -> None:
        self.append(line)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """Instead of running commands, write a model and record them here."""
    recorded: list[Sequence[str]] = []

    def run(steps: Sequence[str], folder: Path) -> None:
        recorded.append(steps)
        for name in ("model.circle", "model.tflite"):
            (folder / name).write_text("a model")

    monkeypatch.setattr(shell, "run", run)
    monkeypatch.setattr(known_answers, "store_known_answers", lambda model: None)
    return recorded


def tree(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def test_a_package_is_built_once(tmp_path: Path, checkpoint: Path, steps: list[Sequence[str]]) -> None:
    log = Log()
    builder = PackageBuilder(checkpoint, tmp_path / "p", 16, None, log, if_changed=True)
    builder.circle(None, "float32")
    builder.circle(None, "float32")
    assert len(steps) == 1
    assert log[-1] == f"{tmp_path / 'p'} is up to date"
    builder.circle(None, "float16")
    assert len(steps) == 2, "another dtype"
    os.utime(checkpoint / "model.safetensors", (time.time(), time.time() + 5))
    builder.circle(None, "float16")
    assert len(steps) == 3, "another checkpoint"
    builder.tflite("none")
    assert len(steps) == 4, "another format"
    assert not (tmp_path / "p" / "model.circle").exists()
    assert any("model.circle, which model.tflite replaces" in line for line in log)
    (tmp_path / "p" / "model.tflite").unlink()
    builder.tflite("none")
    assert len(steps) == 5, "the model is missing"
    PackageBuilder(checkpoint, tmp_path / "p", 16, None, log).tflite("none")
    assert len(steps) == 6, "without if_changed"


def test_files_of_another_checkpoint_do_not_stay(
    tmp_path: Path, checkpoint: Path, steps: list[Sequence[str]]
) -> None:
    """An old added_tokens.json would change the tokens of a text."""
    package, log = tmp_path / "p", Log()
    package.mkdir()
    (package / "merges.txt").write_text("the user's own")
    PackageBuilder(checkpoint, package, 16, None, log).circle(None, "float32")
    assert (package / "merges.txt").exists(), "the folder was no package"
    (package / "added_tokens.json").write_text("{}")
    PackageBuilder(checkpoint, package, 16, None, log).circle(None, "float32")
    assert not (package / "added_tokens.json").exists()
    assert (package / "config.json").exists()
    assert any(f"removed {package / 'added_tokens.json'}, which {checkpoint}" in line for line in log)


def test_a_package_in_its_checkpoints_folder(tmp_path: Path, steps: list[Sequence[str]]) -> None:
    folder = write_checkpoint(tmp_path / "both", **GROUPED | {"num_hidden_layers": 1})
    log = Log()
    builder = PackageBuilder(folder, folder, 16, None, log, if_changed=True)
    builder.circle(None, "float32")
    builder.circle(None, "float32")
    assert len(steps) == 1
    assert (folder / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["a b", "it's", "$HOME", "a;b", "two\nlines", "-x", "~", "#", "100%", "c:d"])
def test_nothing_outside_the_package_is_written(
    tmp_path: Path, checkpoint: Path, steps: list[Sequence[str]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for other in ("a", "b", "model.circle"):
        Path(other).write_text("not yours")
    before = tree(tmp_path)
    PackageBuilder(checkpoint, Path(name), 16, None, Log()).circle(None, "float32")
    after = tree(tmp_path)
    assert {path: content for path, content in after.items() if path.split("/")[0] != name} == before
    assert after[f"{name}/model.circle"] == b"a model"


def test_a_command_that_fails_leaves_nothing(tmp_path: Path, checkpoint: Path) -> None:
    builder = PackageBuilder(checkpoint, tmp_path / "a" / "b", 16, None, Log())
    with pytest.raises(ModelError, match=r"a command failed \(exit code 7\), .* is unchanged$"):
        builder._build(["touch x; exit 7"], "model.circle", 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("step", "hint"),
    [
        (
            "\nfuse.attention.py < missing | cat > out\n",
            "; --cache static, the default, does without this command",
        ),
        ("exit 1", ""),
    ],
)
def test_only_fusing_hints_at_static_caches(tmp_path: Path, checkpoint: Path, step: str, hint: str) -> None:
    builder = PackageBuilder(checkpoint, tmp_path / "p", 16, None, Log())
    with pytest.raises(ModelError) as error:
        builder._build([step], "model.circle", 0)
    assert str(error.value).endswith(f"is unchanged{hint}")


def test_a_package_that_is_a_file(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "p").write_text("not yours")
    with pytest.raises(UsageError, match="this is a file, not a folder"):
        PackageBuilder(checkpoint, tmp_path / "p", 16, None, Log()).circle(None, "float32")
    assert (tmp_path / "p").read_text() == "not yours"


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_every_family_gets_static_caches_and_one_operator(
    tmp_path: Path, steps: list[Sequence[str]], model_type: str
) -> None:
    folder = write_checkpoint(tmp_path / model_type, model_type=model_type, **GPT2)
    builder = PackageBuilder(folder, tmp_path / "p", 16, None, Log())
    builder.circle(None, "float32")
    (commands,) = steps
    assert "--prefill-lengths 16 --cache static" in commands[0]
    assert "--attn-implementation grouped" in commands[0]
    assert "| fuse.attention.py | fuse.rms_norm.py | fuse.rope.py" in commands[1]
    if model_type == "gpt2":
        with pytest.raises(UsageError, match="--cache concat needs Circle's ATTENTION, which has no operand"):
            builder.circle("concat", "float32")
        return
    builder.circle("concat", "float32")
    assert "--cache concat" in steps[-1][0], "as the user says"
    assert "--attn-implementation" not in steps[-1][0]


def test_the_shapes_of_any_family(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "gpt2", model_type="gpt2", **GPT2)
    steps = circle_commands(folder, 16, None, "concat", "float32")
    assert "[1,6,14,8] [1,6,16,8]" in steps[-2]


@pytest.mark.parametrize("flags", [[], ["--cache=static"]])
def test_gpt_2_from_a_checkpoint_to_tokens(tmp_path: Path, shared_directory: Path, flags: list[str]) -> None:
    """In a folder whose name the shell and make would take for several words."""
    folder = write_checkpoint(
        tmp_path / "it's a $MODEL", model_type="gpt2", **GPT2 | {"num_hidden_layers": 1}
    )
    package = tmp_path / "a package; of $HOME"
    arguments = ["--model", str(folder), f"--package={package}", "--max-length=16", *flags]
    if flags:
        with in_process(shared_directory):
            assert pipeline.main(arguments) == 0
    else:
        command = [sys.executable, str(ROOT / "tinyllama" / "pipeline.py"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    loaded = Package.load(package)
    assert loaded.self_test().steps == 5
    loaded.tokenizer = WITHOUT_TOKENIZER
    generator = np.random.default_rng(0)
    prompts = [generator.integers(3, GROUPED["vocab_size"], length).tolist() for length in (1, 5, 16)]
    assert_generates_the_same(loaded, folder, prompts)
