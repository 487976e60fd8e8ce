"""verify.py: what is exported, against transformers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from export.model import LanguageModel
from tests.checkpoints import GROUPED, write_checkpoint
from tests.tolerances import assert_close
from tinyllama import verify
from tinyllama.verification import comparison
from tinyllama.verification.exported import Exported, read_weights
from tinyllama.verification.hugging_face import HuggingFace

TINYLLAMA = Path(verify.__file__).parent
SHORT = ["--prompts=Tim was happy", "--max_new_tokens=4"]
PROMPT = [1, 17, 5, 200, 44]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "qwen2"},
        {"dtype": "bfloat16"},
        {"model_type": "mistral"},
    ],
    ids=["llama", "qwen2", "bfloat16", "mistral"],
)
def test_passes(
    config: dict, make_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_checkpoint(**config)

    assert verify.main([f"--checkpoint_path={folder}", *SHORT, "--prompts=big small dog"]) == 0

    out = capsys.readouterr().out
    assert "Verifying with prompt: 'big small dog'" in out
    for name in ("verify with input IDs", "verify with prompts", "verify_reauthored_model"):
        assert f"✅ PASSED - {name}\n" in out


def test_the_seeds_command_on_the_demo_model() -> None:
    """As typed: in its folder, by its name, with defaults."""
    command = [sys.executable, "verify.py", "--prompts=What is a turboprop engine?", "--max_new_tokens=8"]

    result = subprocess.run(command, cwd=TINYLLAMA, capture_output=True, text=True, timeout=120)

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("✅ PASSED - verify_reauthored_model\n")


def test_the_tolerance_is_used(grouped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main([f"--checkpoint_path={grouped}", *SHORT, "--tolerance=1e-9"]) == 1

    out = capsys.readouterr().out
    assert "limit 1.0e-09" in out
    assert "the first tensor that differs is model.layers.0." in out
    assert "❌ FAILED - verify_reauthored_model\n" in out


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.up_proj", "model.layers.0.self_attn.v_proj", "model.norm"]
)
def test_one_weight_that_changed_is_found_by_its_name(
    name: str, grouped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def changed(directory: Path) -> list[torch.Tensor]:
        weights = read_weights(directory)
        weights[list(LanguageModel.read(directory).parameters).index(f"{name}.weight")].view(-1)[3] += 0.5
        return weights

    monkeypatch.setattr("tinyllama.verification.check_exported.read_weights", changed)

    assert verify.main([f"--checkpoint_path={grouped}", *SHORT]) == 1
    assert f"the first tensor that differs is {name}, by" in capsys.readouterr().out


def test_what_a_cache_forgets_is_found_at_the_step_where_it_shows(grouped: Path) -> None:
    """Prefill is right, decode looks into caches that were emptied: the first that differs is attention."""
    reference = HuggingFace(grouped)
    subject = Exported(grouped, read_weights(grouped), 8, 16)
    run = subject._run

    def forgetful(program: object, tokens: list[int], position: int, watch: bool = False) -> dict:
        subject._caches = tuple(torch.zeros_like(cache) for cache in subject._caches)
        return run(program, tokens, position, watch)  # type: ignore[arg-type]

    subject._run = forgetful  # type: ignore[method-assign, assignment]
    steps = comparison.drift(reference, subject, PROMPT, 3)
    summary = comparison.locate(reference, subject, PROMPT, steps, 1, 1e-4)

    assert steps[0].off < 1e-4 < 1e-2 < steps[1].off
    assert summary.startswith("the first tensor that differs is model.layers.0.self_attn.o_proj.input")


def test_the_choices_are_the_tokens_of_generate(grouped: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(grouped, dtype=torch.float32)
    expected = model.generate(torch.tensor([PROMPT]), max_new_tokens=9, do_sample=False, eos_token_id=None)

    steps = comparison.drift(HuggingFace(grouped), HuggingFace(grouped), PROMPT, 9)

    assert [step.expected for step in steps] == expected[0, len(PROMPT) :].tolist()


def test_a_trace_holds_every_module_with_weights_in_both(grouped: Path) -> None:
    reference, subject = HuggingFace(grouped), Exported(grouped, read_weights(grouped), 8, 16)
    modules = {name.rpartition(".")[0] for name in LanguageModel.read(grouped).parameters}

    for generated in ([], [9], [9, 30]):
        one, other = reference.trace(PROMPT, generated), subject.trace(PROMPT, generated)
        assert (
            modules | {"logits", "model.layers.2.keys", "model.layers.2.values"} <= one.keys() & other.keys()
        )
        rows = {len(numbers) for numbers in (*one.values(), *other.values())}
        assert rows == ({1} if generated else {len(PROMPT)})
        assert_close(one["model.layers.2.keys"], other["model.layers.2.keys"])


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--checkpoint_path=/no/such/place"], 2, "no such folder: /no/such/place"),
        (["--tolerance=-1"], 2, "-1 is not a tolerance"),
        (["--tolerance=much"], 2, "--tolerance"),
        (["--max_new_tokens=0"], 2, "is not a positive integer"),
        (["--max_new_tokens=60", "--checkpoint_path={grouped}"], 2, "this model has 64 positions"),
        (["--checkpoint_path={empty}"], 1, "has no config.json: not a Hugging Face checkpoint"),
        (["--checkpoint_path={keras}"], 1, "has no weights: it needs .safetensors"),
        (
            ["--checkpoint_path={keras}/model.h5"],
            1,
            "file format not supported: use .safetensors, .bin, .pt or .pth",
        ),
    ],
)
def test_wrong_usage_is_one_line(
    arguments: list[str],
    code: int,
    line: str,
    grouped: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    keras = tmp_path / "keras"
    keras.mkdir()
    (keras / "config.json").write_text((grouped / "config.json").read_text())
    (keras / "model.h5").write_bytes(b"\x89HDF")
    places = {"grouped": grouped, "empty": tmp_path, "keras": keras}

    assert verify.main([argument.format(**places) for argument in arguments]) == code

    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert line in captured.err
    assert not captured.out


def test_a_checkpoint_of_pytorchs_own_is_read(tmp_path: Path) -> None:
    """transformers does not look for .pt files; the export does."""
    write_checkpoint(tmp_path / "a", **GROUPED)
    write_checkpoint(tmp_path / "b", **GROUPED, format="bin")
    (tmp_path / "b" / "pytorch_model.bin").rename(tmp_path / "b" / "consolidated.pt")

    a, b = HuggingFace(tmp_path / "a"), HuggingFace(tmp_path / "b")

    np.testing.assert_array_equal(a.scores(PROMPT[:3]), b.scores(PROMPT[:3]))
