"""verify_flash.py, test_flash_attention.py, debug_flash_generation.py: flash attention against standard."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from export import custom_ops, flash_attention
from tinyllama import debug_flash_generation, test_flash_attention, verify_flash

SHORT = ["--prompts=Tim was happy and she liked to play", "--max_new_tokens=5"]
BLOCKS = ["--q_block=4", "--kv_block=8"]
COMMANDS = {
    "verify_flash": verify_flash.main,
    "test_flash_attention": test_flash_attention.main,
    "debug_flash_generation": debug_flash_generation.main,
}
ATTENTION = "model.layers.0.self_attn.o_proj.input"  # what attention of the first layer gives


@pytest.fixture(scope="module")
def grouped(make_checkpoint: Callable[..., Path]) -> Path:
    """One layer: every command traces several graphs, and time goes by layers."""
    return make_checkpoint(num_hidden_layers=1)


@pytest.fixture
def relative(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug of the seeds: queries numbered from 0, wherever they stand."""

    def attend(*operands: Any, **optional: Any) -> torch.Tensor:
        q, k, v, position, scale, *blocks = operands
        position = 0 if all(blocks) else position
        return flash_attention.attend(q, k, v, position, scale, *blocks, **optional)

    monkeypatch.setattr(custom_ops, "attend", attend)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_flash_says_what_standard_attention_says(
    command: Callable, grouped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command([f"--checkpoint_path={grouped}", *SHORT, *BLOCKS]) == 0
    assert "❌" not in capsys.readouterr().out


def test_lines_of_the_seed(grouped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify_flash.main([f"--checkpoint_path={grouped}", *SHORT])
    lines = capsys.readouterr().out.splitlines()

    for name in ("verify with input IDs", "verify with prompts", "verify_reauthored_model"):
        assert f"✅ PASSED - {name}" in lines
    assert sum("flash attention against standard attention" in line for line in lines) == 3
    assert sum("flash attention against Hugging Face" in line for line in lines) == 3
    assert "(limit 3.0e-05)" in lines[1]

    test_flash_attention.main([f"--checkpoint_path={grouped}", *SHORT])
    out = capsys.readouterr().out
    assert "Test: Flash Attention with KV Cache\n  ✅ Forward pass successful\n  ✅ Prefill successful" in out
    assert "Test: Flash Attention vs Standard Attention Comparison\n  Max absolute difference: " in out
    assert out.endswith(
        "✅ Forward pass with KV cache\n✅ Prefill and decode stages\n✅ Autoregressive generation\n"
        "✅ Flash vs Standard attention comparison\n✅ All Tests Passed!\n"
    )


@pytest.mark.usefixtures("relative")
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_relative_positions_are_caught(
    command: Callable, grouped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command([f"--checkpoint_path={grouped}", *SHORT]) == 1
    assert "❌" in capsys.readouterr().out


@pytest.mark.usefixtures("relative")
def test_relative_positions_are_found_where_they_begin(
    grouped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A prompt begins at 0 and is right; the first token after it is not, from the first attention on."""
    verify_flash.main([f"--checkpoint_path={grouped}", *SHORT])
    out = capsys.readouterr().out
    assert f"decode step 1: the first tensor that differs is {ATTENTION}, by" in out
    assert "prefill of" not in out

    debug_flash_generation.main([f"--checkpoint_path={grouped}", *SHORT])
    out = capsys.readouterr().out
    assert "They diverge at step " in out
    assert f"The first tensor that differs is {ATTENTION}, by" in out


@pytest.mark.parametrize("command", [verify_flash.main, test_flash_attention.main], ids=["verify", "test"])
def test_the_tolerance_is_used(command: Callable, grouped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command([f"--checkpoint_path={grouped}", *SHORT, *BLOCKS, "--tolerance=1e-9"]) == 1
    assert command([f"--checkpoint_path={grouped}", *SHORT, *BLOCKS, "--tolerance=1e-3"]) == 0


def test_debug_names_the_tensor_that_is_furthest_off(
    make_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"--checkpoint_path={make_checkpoint()}", *SHORT, *BLOCKS]

    assert debug_flash_generation.main(arguments) == 0
    out = capsys.readouterr().out
    assert "They choose the same 5 tokens; their logits differ most at step" in out
    assert "No intermediate tensor differs by more than 1e-04 of its largest element; the largest" in out
    for layer in range(3):
        assert f"\n  layer   {layer}   " in out

    assert debug_flash_generation.main([*arguments, "--tolerance=1e-9"]) == 0  # the tokens are the same
    assert f"The first tensor that differs is {ATTENTION}, by" in capsys.readouterr().out


@pytest.mark.parametrize("model_type", ["qwen2", "gemma"])
def test_other_architectures(
    model_type: str, make_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_checkpoint(model_type=model_type, num_hidden_layers=1)

    assert verify_flash.main([f"--checkpoint_path={folder}", *SHORT, *BLOCKS]) == 0


@pytest.mark.parametrize("flag", ["--q_block=0", "--kv_block=-1", "--q_block=many", "--unknown=1"])
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_wrong_usage_is_one_line(command: Callable, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command([flag]) == 2

    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert flag.partition("=")[0] in captured.err
    assert not captured.out


@pytest.mark.parametrize("script", COMMANDS)
def test_runs_by_path_from_its_folder(script: str) -> None:
    folder = Path(verify_flash.__file__).parent
    command = [sys.executable, f"{script}.py", "--help"]

    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)

    assert (result.returncode, result.stderr) == (0, "")
    assert f"usage: {script}.py" in result.stdout
