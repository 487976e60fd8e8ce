"""verify_tflite.py: files as they are run, against transformers; and what it says of those that are wrong."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from export.attention import queries_at
from export.circle import compile_graph
from o2o import formats
from tests.tinyllama.tflite_files import CAPACITY, LENGTH, write_graphs, write_tflite
from tests.tolerances import assert_close
from tinyllama import debug_flash_generation, verify_tflite
from tinyllama.verification.comparison import Step, step
from tinyllama.verification.hugging_face import HuggingFace
from tinyllama.verification.quantized_reference import round_to_8_bits
from tinyllama.verification.tflite import TfliteFile
from tinyllama.verification.tolerances import Precision
from tinyllama.verification.trace import differences

PROMPTS = ["--prompts=Tim was happy", "--prompts=big small dog", "--max_new_tokens=12"]
RECIPES = ("float16", "dynamic_int8", "weight_only_int8", "dynamic_int4_block32", "dynamic_int4_block128")
LAYERS = 2
SIZES = {"num_hidden_layers": LAYERS, "hidden_size": 96, "intermediate_size": 128, "head_dim": 32}
LONG = [1, *range(40, 40 + 2 * LENGTH + 3)]  # of two full prefills and a piece of one


@pytest.fixture(scope="module")
def grouped(make_checkpoint: Callable[..., Path]) -> Path:
    """Of matrices whose rows are whole blocks of 32."""
    return make_checkpoint(**SIZES)


@pytest.fixture(scope="module")
def file_of(shared_directory: Path, grouped: Path) -> Callable[..., Path]:
    """(see `write_tflite`) -> a file of the checkpoint `grouped`."""
    folder = shared_directory / "tflite-files"
    folder.mkdir(exist_ok=True)

    def file(**how: str) -> Path:
        path = folder / f"{'-'.join(how.values()) or 'model'}.tflite"
        with FileLock(folder / "lock"), contextlib.redirect_stderr(io.StringIO()):  # whichever test is first
            return path if path.exists() else write_tflite(grouped, path, **how)

    return file


def changed(checkpoint: Path, folder: Path, tensor: str, by: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """A copy of `checkpoint` in which one tensor is another."""
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    tensors = load_file(folder / "model.safetensors")
    tensors[tensor] = by(tensors[tensor])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def verify(file: Path, checkpoint: Path, *more: str) -> int:
    return verify_tflite.main([f"--tflite_path={file}", f"--checkpoint_path={checkpoint}", *more])


# What is right passes.


@pytest.mark.parametrize(
    "how",
    [{}, {"attn_implementation": "flash"}, {"attn_implementation": "eager"}, {"sign": ""}],
    ids=["grouped", "flash", "eager", "o2o's names"],
)
def test_a_float_file_passes(
    how: dict[str, str], file_of: Callable[..., Path], grouped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(file_of(**how), grouped, *PROMPTS, "--tolerance=1e-4") == 0

    out = capsys.readouterr().out
    assert out.count("✓ First 10 tokens match: 10/10\n") == 2
    assert 'Prompt: "big small dog"' in out
    texts = [
        line.partition('"')[2] for line in out.splitlines() if line.startswith(("  PyTorch:", "  TFLite:"))
    ]
    assert len(texts) == 4
    assert texts[::2] == texts[1::2]
    assert out.count("'\n") == 24  # a line a step
    assert out.endswith("\n✓ ALL TESTS PASSED\n")


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_quantized_file_passes(
    recipe: str, file_of: Callable[..., Path], grouped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = file_of(recipe=recipe)

    assert verify(file, grouped, *PROMPTS) == 0

    out = capsys.readouterr().out
    stored = "int4" if "int4" in recipe else recipe.split("_")[-1]
    assert f"  ✓ 20 of 20 weights are the checkpoint's, as {stored}\n" in out
    assert ("rounds what they are multiplied with to 8 bits" in out) == ("dynamic" in recipe)
    assert out.endswith("\n✓ ALL TESTS PASSED\n")
    assert verify(file, grouped, *PROMPTS, "--tolerance=1e-9") == 1


def test_the_seeds_command_in_its_folder(file_of: Callable[..., Path], grouped: Path) -> None:
    command = [sys.executable, "verify_tflite.py", f"--tflite_path={file_of()}"]
    command += [f"--checkpoint_path={grouped}", "--max_new_tokens=4"]
    folder = Path(verify_tflite.__file__).parent

    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)

    assert (result.returncode, result.stderr) == (0, "")
    assert 'Prompt: "What is AI?"' in result.stdout
    assert 'Prompt: "Hello, how are you?"' in result.stdout
    assert result.stdout.endswith("✓ ALL TESTS PASSED\n")


# What is wrong does not, and is named.


def test_a_tolerance_that_is_too_small(
    file_of: Callable[..., Path], grouped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(file_of(), grouped, *PROMPTS, "--tolerance=1e-9") == 1

    out = capsys.readouterr().out
    assert "✗ prefill: logits within" in out
    assert "the first tensor that differs is model.layers.0." in out
    assert out.endswith('✗ FAILED: prompt "Tim was happy", prompt "big small dog"\n')


@pytest.mark.parametrize(
    "tensor",
    [
        "model.layers.1.self_attn.v_proj",
        "model.layers.1.mlp.down_proj",
        "model.layers.0.post_attention_layernorm",
        "model.embed_tokens",
    ],
)
def test_one_weight_that_is_another_is_named(
    tensor: str,
    file_of: Callable[..., Path],
    grouped: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = changed(grouped, tmp_path, f"{tensor}.weight", lambda weight: weight * 1.5)

    assert verify(file_of(), other, *PROMPTS) == 1

    out = capsys.readouterr().out
    assert f"    {tensor}.weight differs by " in out
    assert f"prefill of 4 tokens: the first tensor that differs is {tensor}, by " in out


@pytest.mark.parametrize("recipe", ["float16", "dynamic_int8", "dynamic_int4_block32"])
def test_one_number_of_a_quantized_file(
    recipe: str,
    file_of: Callable[..., Path],
    grouped: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Which no text need show."""
    tensor = "model.layers.1.self_attn.v_proj.weight"

    def one_more(weight: torch.Tensor) -> torch.Tensor:
        weight[3, 5] += 0.5
        return weight

    assert verify(file_of(recipe=recipe), changed(grouped, tmp_path, tensor, one_more), *PROMPTS) == 1

    out = capsys.readouterr().out
    assert "✗ 19 of 20 weights are the checkpoint's" in out
    assert f"    {tensor} differs by " in out
    assert "❌ FAILED - weights" in out


@pytest.fixture(scope="module")
def relative(grouped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with graphs that have the bug of the seeds: queries count from 0."""
    folder = tmp_path_factory.mktemp("relative")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.modules.queries_at", lambda at, mask: queries_at(at * 0, mask))
        patch.setattr("export.circle.compile_graph", compile_graph)  # none that was compiled before
        write_graphs(grouped, folder, "flash")
    return folder


@pytest.mark.parametrize("recipe", ["none", "dynamic_int8"])
def test_relative_positions_are_found(
    recipe: str, relative: Path, grouped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Decode's query sees nothing but the first key."""
    file = write_tflite(grouped, relative / f"{recipe}.tflite", "flash", recipe)

    assert verify(file, grouped, *PROMPTS) == 1

    out = capsys.readouterr().out
    assert "the first tensor that differs is model.layers.0.self_attn.o_proj.input, by " in out


def test_weights_of_another_checkpoint(
    file_of: Callable[..., Path], make_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_checkpoint(seed=1, **SIZES)

    assert verify(file_of(recipe="dynamic_int4_block32"), other, *PROMPTS) == 1
    assert "    model.embed_tokens.weight differs by " in capsys.readouterr().out


def test_a_file_with_other_names(
    file_of: Callable[..., Path], grouped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one made elsewhere: its weights cannot be compare_weights, nor be given to PyTorch."""
    model = formats.load(file_of(recipe="dynamic_int8"))
    for graph in model.graphs:
        for number, value in enumerate(list(graph.initializers.values())):
            value.name = f"constant_{number}"
    formats.save(model, tmp_path / "model.tflite")

    assert verify(tmp_path / "model.tflite", grouped, *PROMPTS) == 0
    out = capsys.readouterr().out
    assert "not compared, as the file has no weight of that name: model.embed_tokens.weight and others" in out
    assert "(required: noise mostly up to 0.6 of their spread)" in out


# What cannot be compare_weights is refused, in one line.


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"vocab_size": 400}, "has a vocabulary of 380 tokens, {} has 400"),
        ({"num_hidden_layers": 3}, "has KV caches of 2 layers, {} has 3"),
        ({"num_key_value_heads": 3}, "has KV caches of 2 heads in layer 0, {} has 3"),
        ({"head_dim": 12}, "has KV caches with heads of size 32 in layer 0, {} has 12"),
    ],
    ids=["vocabulary", "layers", "heads", "head"],
)
def test_another_checkpoint(
    config: dict[str, int],
    reason: str,
    file_of: Callable[..., Path],
    make_checkpoint: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = make_checkpoint(**{**SIZES, **config})

    assert verify(file_of(), other) == 1
    assert refused(capsys).endswith(f"{reason.format(other)}: they are not from the same checkpoint")


def test_a_prompt_that_is_too_long(
    file_of: Callable[..., Path], grouped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(file_of(), grouped, "--prompts=Tim was happy", f"--max_new_tokens={CAPACITY}") == 2

    line = refused(capsys)
    assert (
        f"has 4 tokens, and --max_new_tokens is {CAPACITY}: model.tflite has KV caches of {CAPACITY}" in line
    )
    assert "--kv_cache_max_len" in line


def test_a_checkpoint_in_the_wrong_format(
    file_of: Callable[..., Path], grouped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(grouped, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").rename(tmp_path / "model.h5")

    assert verify(file_of(), tmp_path, *PROMPTS) == 1
    assert "has no weights: " in refused(capsys)


def test_files_that_are_none(
    file_of: Callable[..., Path], grouped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(tmp_path / "model.tflite", grouped) == 2
    assert "no such file: " in refused(capsys)
    assert verify(grouped / "config.json", grouped) == 1
    assert "config.json: " in refused(capsys)
    assert verify(file_of().with_name("grouped.decode"), grouped) == 1
    assert "is Circle, not TFLite: run lower.litert.py first" in refused(capsys)
    assert verify_tflite.main([]) == 2
    assert "--tflite_path" in refused(capsys)


def test_a_file_without_decode(
    file_of: Callable[..., Path], grouped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = formats.load(file_of())
    model.signatures = [signature for signature in model.signatures if signature.name != "decode"]
    formats.save(model, tmp_path / "model.tflite")

    assert verify(tmp_path / "model.tflite", grouped) == 1
    assert "no signature 'decode'" in refused(capsys)


# The tensors on the way.


@pytest.mark.parametrize(
    "how", [{}, {"attn_implementation": "flash"}, {"sign": ""}], ids=["ai edge", "flash", "o2o"]
)
def test_every_module_is_seen(how: dict[str, str], file_of: Callable[..., Path], grouped: Path) -> None:
    reference, file = HuggingFace(grouped), TfliteFile(file_of(**how), grouped)

    for fed in ([], [7, 9, 3]):
        expected, found = reference.trace(LONG, fed), file.trace(LONG, fed)
        # The head is tied: its weight is the embedding's, and what it gives are the logits.
        assert expected.keys() - found.keys() == {"lm_head", "lm_head.input"}
        assert len(found) == 18 * LAYERS + 3
        assert max(item.relative for item in differences(expected, found)) < 1e-5
    every = {name: len(rows) for name, rows in file.trace(LONG).items()}
    assert every["model.layers.1.keys"] == every["model.embed_tokens"] == len(LONG)
    file.close()


def test_a_trace_is_of_what_was_run(file_of: Callable[..., Path], grouped: Path) -> None:
    file = TfliteFile(file_of(), grouped)

    logits = [file.prefill(LONG), file.decode(7, len(LONG)), file.decode(9, len(LONG) + 1)]
    for fed, wanted in zip(([], [7], [7, 9]), logits, strict=True):
        assert_close(file.trace(LONG, fed)["logits"][-1], wanted)
    file.close()


def test_debugging_a_file(
    file_of: Callable[..., Path], grouped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--tflite_path={file_of()}", "--prompts=Tim was happy", "--max_new_tokens=6"]

    assert debug_flash_generation.main([f"--checkpoint_path={grouped}", *flags]) == 0
    assert "No intermediate tensor differs by more than" in capsys.readouterr().out
    tensor = "model.layers.1.self_attn.q_proj"
    other = changed(grouped, tmp_path, f"{tensor}.weight", lambda weight: weight * -2)
    debug_flash_generation.main([f"--checkpoint_path={other}", *flags])
    assert f"The first tensor that differs is {tensor}, by " in capsys.readouterr().out


# The criterion.


def steps(*gaps_and_drifts: tuple[float, float]) -> list[Step]:
    return [Step(0, int(gap > 0), off, 0.01, gap) for gap, off in gaps_and_drifts]


def test_a_parting_must_be_explained_by_the_usual_drift() -> None:
    int8 = Precision("int8", None, 0.2)

    assert int8.explains(steps((0, 0.1), (0, 0.1), (0.2, 0.1)), 2)
    # What one step does wrong does not excuse itself.
    assert not int8.explains(steps((0, 0.1), (0, 0.1), (0.3, 9.0)), 2)
    assert not Precision("float32", 0.01).explains(steps((1e-6, 1e-3)), 0)


def test_what_holds() -> None:
    def noisy(*noise: float) -> list[Step]:
        return [Step(0, 0, one, one, 0) for one in noise]

    assert Precision("int8", None, 0.2).holds(noisy(0.1, 0.2, 0.9))
    assert not Precision("int8", None, 0.2).holds(noisy(0.1, 0.3, 0.3))
    assert not Precision("int8", None, 0.2).holds(noisy(0.1, 0.1, 1.0))  # as if a step were another's
    assert not Precision("int8", 0.5, 0.2).holds(noisy(0.1, 0.1, 0.9))
    assert not Precision("float32", 0.01).holds(noisy(0.001, np.nan))


@pytest.mark.parametrize(
    "rows", [[[0.0, 0.0, 0.0]], [[-1.0, 0.0, 1.0]], [[0.3, 2.0, 5.0], [-7.0, -1.0, -0.2]]]
)
def test_rounding_to_8_bits(rows: list[list[float]]) -> None:
    x = torch.tensor(rows)
    spread = x.amax(-1, keepdim=True).clamp(min=0) - x.amin(-1, keepdim=True).clamp(max=0)

    assert ((round_to_8_bits(x) - x).abs() <= spread / 255).all()
    assert not round_to_8_bits(x)[x == 0].any()  # nothing stays nothing


def test_noise_is_relative_to_the_spread() -> None:
    generator = np.random.default_rng(0)
    logits, other = generator.standard_normal((2, 4000)).astype(np.float32)

    assert step(logits, logits + 0.1 * other).noise == pytest.approx(0.1, rel=0.05)
    assert step(logits, logits + 5).noise < 1e-6  # which changes no probability
    assert step(logits, other).noise > 1  # what has nothing to do with it
    assert step(logits, np.zeros_like(logits)).noise == pytest.approx(1, rel=0.05)
    assert step(logits, np.full_like(logits, np.nan)).noise == np.inf


def test_precision_is_what_the_file_holds(file_of: Callable[..., Path]) -> None:
    model = formats.load(file_of())
    assert Precision.of(model) == Precision("float32", 0.01)
    assert Precision.of(model, 0.5) == Precision("float32", 0.5)
    of = {recipe: formats.load(file_of(recipe=recipe)) for recipe in RECIPES}
    assert Precision.of(of["dynamic_int8"]) == Precision("int8", None, 0.2)
    assert Precision.of(of["dynamic_int4_block32"], 0.5) == Precision("int4", 0.5, 0.2)
    assert Precision.of(of["weight_only_int8"]) == Precision("int8", 0.01)
    assert Precision.of(of["float16"]) == Precision("float16", 0.01)
