"""A program written for ai-edge-torch's TinyLlama file runs on ours, and says what transformers says.

`manual_inference.txt` is such a program, as the guide of ai-edge-torch's verification prints it. All that is
changed are the interpreter's import, the file, the sizes, and the prompt, which it leaves to the reader.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from o2o.errors import UsageError
from tests.checkpoints import GROUPED
from tests.exported import checkpoint
from tests.pipelines import in_process
from tests.test_guide import DEMO, theirs
from tinyllama.convert_to_tflite import main

LISTING = Path(__file__).with_name("manual_inference.txt").read_text()
STEPS = 50  # that it makes
CAPACITY, LENGTH = 64, 16
OURS = "from runtime_py.interpreter import Interpreter"
LITERTS = "from ai_edge_litert.interpreter import Interpreter"


def adapted(model: Path, prompt: list[int], layers: int, heads: int, size: int, **changes: str) -> str:
    """The listing for this file and prompt. changes: whatever else is to be another, by names below."""
    replacements = {
        "interpreter": ("import tensorflow as tf", OURS),
        "class": ("tf.lite.Interpreter", "Interpreter"),
        "path": ('"model.tflite"', repr(str(model))),
        "layers": ("num_layers = 22", f"num_layers = {layers}"),
        "heads": ("num_kv_heads = 4", f"num_kv_heads = {heads}"),
        "size": ("head_dim = 64", f"head_dim = {size}"),
        "capacity": ("kv_max_len = 1280", f"kv_max_len = {CAPACITY}"),
        "prompt": ("[1, 529, 29989, ...]", repr(prompt)),
        "length": ("expected_len = 64", f"expected_len = {LENGTH}"),
        "positions": ("np.arange(expected_len, dtype=np.int32)", None),
    }
    text = LISTING
    for name, (old, new) in replacements.items():
        assert text.count(old) == 1
        text = text.replace(old, changes.get(name, new or old))
    return text


def converted(shared: Path, directory: Path, folder: Path, *flags: str) -> Path:
    target = folder / "model.tflite"
    sizes = [f"--prefill_seq_lens={LENGTH}", f"--kv_cache_max_len={CAPACITY}"]
    with in_process(shared):
        assert main([f"--checkpoint_path={directory}", *sizes, f"--output_path={target}", *flags]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["model.tflite"]
    return target


def run(program: str, eos: int = -1) -> list[int]:
    names: dict[str, Any] = {"eos_token_id": eos}
    exec(program, names)
    return names["generated"]


@functools.cache
def generated_by_transformers(directory: Path, prompt: tuple[int, ...]) -> list[int]:
    import torch

    ids = torch.tensor([prompt])
    options = {"do_sample": False, "max_new_tokens": STEPS, "eos_token_id": None}
    made = theirs(directory).generate(ids, attention_mask=torch.ones_like(ids), **options)
    return made[0, len(prompt) :].tolist()


@pytest.fixture(scope="module")
def grouped(shared_directory: Path) -> Path:
    return checkpoint(shared_directory, "grouped")


@pytest.fixture(scope="module", params=["standard", "flash"])
def grouped_file(
    request, shared_directory: Path, grouped: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    flash = ["--use_flash_attention=true", "--flash_q_block=4", "--flash_kv_block=24"]
    flags = flash if request.param == "flash" else []
    return converted(
        shared_directory, grouped, tmp_path_factory.mktemp(request.param), "--quantize=false", *flags
    )


SIZES = {
    "layers": GROUPED["num_hidden_layers"],
    "heads": GROUPED["num_key_value_heads"],
    "size": GROUPED["head_dim"],
}


@pytest.mark.parametrize("interpreter", [OURS, LITERTS])
@pytest.mark.parametrize("length", [1, 7, 16 - 2])
def test_a_random_grouped_model(grouped, grouped_file, interpreter, length):
    prompt = [3, 81, 47, 5, 110, 99, 64, 12, 13, 90, 33, 7, 128, 40][:length]
    found = run(adapted(grouped_file, prompt, **SIZES, interpreter=interpreter))
    assert found == generated_by_transformers(grouped, tuple(prompt))


def test_positions_padded_with_zeros_are_explained(grouped_file):
    """The mistake that the guide warns of. LiteRT itself runs it, and gives garbage."""
    padded = "np.pad(np.arange(seq_len, dtype=np.int32), (0, expected_len - seq_len))"
    with pytest.raises(UsageError, match=r"prefill: input_pos is padded with zeros at index 3: .* np.arange"):
        run(adapted(grouped_file, [3, 81, 47], **SIZES, positions=padded))


def test_caches_of_another_size_are_explained(grouped_file):
    capacity = "kv_max_len = 1280"
    with pytest.raises(UsageError, match=r"prefill: kv_cache_k_0 is float32 \[1, 1280, 2, 10\], not"):
        run(adapted(grouped_file, [3, 81, 47], **SIZES, capacity=capacity))


@pytest.mark.parametrize("quantize", ["false", "true"])
def test_the_demo_model(shared_directory, tmp_path, quantize):
    """In eight bits its first ten words are those of the full model."""
    from transformers import AutoTokenizer

    file = converted(shared_directory, DEMO, tmp_path, f"--quantize={quantize}")
    prompt = AutoTokenizer.from_pretrained(DEMO)("Lily picked up a flower.").input_ids
    found = run(adapted(file, prompt, layers=8, heads=16, size=4))
    wanted = generated_by_transformers(DEMO, tuple(prompt))
    assert len(found) == STEPS
    if quantize == "true":
        found, wanted = found[:10], wanted[:10]
    assert found == wanted
