"""The seeds' Python API: `tiny_llama.build_model` and `KVCache`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from o2o.errors import ModelError, UsageError
from o2o.operators.core_attention import FlashBlockSizes
from tests.checkpoints import GROUPED
from tests.tolerances import assert_close
from tinyllama import kv_cache as kv_utils
from tinyllama import tiny_llama
from tinyllama.tiny_llama import TinyLlama
from tinyllama.verification.hugging_face import HuggingFace

DEMO = Path(tiny_llama.__file__).parent / "demo" / "checkpoint"
S, PROMPT = 24, [1, 17, 5, 200, 44, 3, 9]

# As the seed has it, but for its imports and its path.
MANUAL_TESTING = """
import torch
from tinyllama import tiny_llama

# Load model
model = tiny_llama.build_model(
    "{checkpoint}",
    use_flash_attention=True
)
model.eval()

# Generate text
from tinyllama import kv_cache as kv_utils
import transformers

tokenizer = transformers.AutoTokenizer.from_pretrained(
    "{checkpoint}"
)

prompt = "What is a turboprop engine?"
tokens = tokenizer.encode(prompt, return_tensors="pt")
input_pos = torch.arange(tokens.shape[1])

kv_cache = kv_utils.KVCache.from_model_config(model.config)

with torch.no_grad():
    output = model(tokens, input_pos, kv_cache)
    logits = output['logits']
    next_token = torch.argmax(logits[0, -1, :])

print(f"Next token: {{tokenizer.decode([next_token])}}")
"""


def tokens(*ids: int) -> torch.Tensor:
    return torch.tensor([ids])


@pytest.fixture(scope="module", params=[False, True], ids=["standard", "flash"])
def model(request: pytest.FixtureRequest, grouped: Path) -> TinyLlama:
    return tiny_llama.build_model(grouped, S, use_flash_attention=request.param, blocks=FlashBlockSizes(3, 4))


def test_the_seeds_listing(capsys: pytest.CaptureFixture[str]) -> None:
    exec(MANUAL_TESTING.format(checkpoint=DEMO), {})

    assert capsys.readouterr().out == "Next token: .\n"


@torch.no_grad()
def test_says_what_transformers_says_piece_by_piece(model: TinyLlama, grouped: Path) -> None:
    expected = torch.from_numpy(HuggingFace(grouped).scores(PROMPT))

    cache, found = kv_utils.KVCache.from_model_config(model.config), []
    for begin, end in ((0, 4), (4, 5), (5, 7)):
        output = model(tokens(*PROMPT[begin:end]), torch.arange(begin, end), cache)
        cache = output["kv_cache"]
        found.append(output["logits"])

    assert_close(torch.cat(found, 1)[0], expected)
    assert_close(model(tokens(*PROMPT))["logits"][0], expected)


@torch.no_grad()
def test_padding_that_goes_on_counting_changes_nothing(model: TinyLlama) -> None:
    """As the files are fed: the prompt padded, then its last token once more."""
    cache = kv_utils.KVCache.from_model_config(model.config)
    padded = tokens(*PROMPT, *[0] * 9)

    cache = model(padded, torch.arange(16), cache)["kv_cache"]
    found = model(tokens(PROMPT[-1]), torch.tensor([len(PROMPT) - 1]), cache)["logits"]

    assert_close(found[0, -1], model(tokens(*PROMPT))["logits"][0, -1])


def test_caches_are_as_the_files_have_them(model: TinyLlama) -> None:
    cache = kv_utils.KVCache.from_model_config(model.config)

    shapes = {tuple(tensor.shape) for tensor in cache}
    assert shapes == {(1, S, GROUPED["num_key_value_heads"], GROUPED["head_dim"])}
    assert len(list(cache)) == 2 * GROUPED["num_hidden_layers"]
    written = model(tokens(5, 6), torch.arange(2), cache)["kv_cache"]
    assert written.filled == 2
    assert written.caches[0].k_cache[:, :2].all()
    assert not written.caches[0].k_cache[:, 2:].any()
    assert not any(tensor.any() for tensor in cache)  # what was given is as it was


def test_is_a_module_with_its_weights(model: TinyLlama, grouped: Path) -> None:
    stored = HuggingFace(grouped).model.state_dict()

    found = {name.removeprefix("transformer."): tensor for name, tensor in model.state_dict().items()}

    assert found.keys() == stored.keys()
    assert all(torch.equal(found[name], stored[name]) for name in stored)
    assert not model.eval().training


@pytest.mark.parametrize(
    ("positions", "line"),
    [
        ([0, 1, 2, 0, 0], "must increase by one, but input_pos[3] is 0 after 2: padding tokens need"),
        ([0, 1, 2, 4, 5], "must increase by one, but input_pos[3] is 4 after 2"),
        ([1, 2, 3, 4, 5], "begins at 1, but the KV cache holds 0 tokens"),
        ([-1, 0, 1, 2, 3], "begins at -1"),
        ([0, 1, 2, 3], r"input_pos is [4] for 5 tokens"),
    ],
)
def test_positions_that_do_not_continue_are_refused(
    positions: list[int], line: str, model: TinyLlama
) -> None:
    cache = kv_utils.KVCache.from_model_config(model.config)

    with pytest.raises(UsageError) as error:
        model(tokens(1, 2, 3, 4, 5), torch.tensor(positions), cache)

    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_a_gap_after_a_prompt_is_refused(model: TinyLlama) -> None:
    cache = model(tokens(*PROMPT))["kv_cache"]

    with pytest.raises(UsageError, match="begins at 9, but the KV cache holds 7 tokens"):
        model(tokens(5), torch.tensor([9]), cache)


def test_a_full_cache_is_refused(model: TinyLlama) -> None:
    cache = model(tokens(*range(S)))["kv_cache"]

    with pytest.raises(UsageError, match=f"position {S} is beyond the KV cache of {S}"):
        model(tokens(5), torch.tensor([S]), cache)


@pytest.mark.parametrize("ids", [[[5, 380]], [[-1]], [[1], [2]], [[]], [1, 2]])
def test_tokens_that_are_none_are_refused(ids: list, model: TinyLlama) -> None:
    with pytest.raises(UsageError, match="tokens"):
        model(torch.tensor(ids, dtype=torch.int64))


def test_caches_of_another_shape_are_refused(model: TinyLlama) -> None:
    cache = kv_utils.KVCache.from_model_config(model.config)
    first = cache.caches[0]
    other = kv_utils.KVCacheEntry(first.k_cache, first.v_cache.transpose(1, 2))

    with pytest.raises(UsageError, match=r"kv_cache_v_1 is .*\[1, 2, 24, 10\], not float32 \[1, 24, 2, 10\]"):
        model(tokens(1), None, kv_utils.KVCache((first, other, first)))
    with pytest.raises(UsageError, match="KV caches of 2 layers for a model of 3"):
        model(tokens(1), None, kv_utils.KVCache((first, first)))


def test_what_cannot_be_built_is_refused(
    grouped: Path, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    with pytest.raises(UsageError, match="this llama model has 64 positions"):
        tiny_llama.build_model(grouped, 65)
    with pytest.raises(ModelError, match="not a Hugging Face checkpoint"):
        tiny_llama.build_model(tmp_path)


def test_a_config_without_the_weights(model: TinyLlama, grouped: Path) -> None:
    flash = model.config.use_flash_attention

    assert tiny_llama.get_model_config(grouped, S, use_flash_attention=flash) == model.config


def test_updating_an_entry_writes_the_rows_that_the_model_writes(model: TinyLlama) -> None:
    empty = kv_utils.KVCache.from_model_config(model.config)
    rows = torch.arange(len(PROMPT))
    written = model(tokens(*PROMPT), rows, empty)["kv_cache"].caches[0]
    k, v = (cache[:, : len(PROMPT)] for cache in (written.k_cache, written.v_cache))

    updated = kv_utils.update(empty.caches[0], rows, k, v)

    assert updated.k_cache.equal(written.k_cache)
    assert updated.v_cache.equal(written.v_cache)
    assert not empty.caches[0].k_cache.any()


def test_a_program_in_the_commands_folder_finds_the_package() -> None:
    """Their files are found, not run: they import torch, which takes seconds."""
    program = (
        "from importlib.util import find_spec\n"
        "from tinyllama import model_config\n"
        "from export import config\n"
        "print(model_config.__name__, find_spec('tinyllama.kv_cache').origin)\n"
        "print(config.__name__, find_spec('tinyllama.tiny_llama').origin)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=DEMO.parents[1], capture_output=True, text=True, check=False
    )

    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        f"tinyllama.model_config {kv_utils.__file__}",
        f"export.config {tiny_llama.__file__}",
    ]
