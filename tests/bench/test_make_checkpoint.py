from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.make_checkpoint import SHAPES, SIZES, Draws, main, split, tensors
from o2o.weights.checkpoint import open_checkpoint

TOY = {
    "hidden": 48,
    "intermediate": 80,
    "layers": 3,
    "heads": 6,
    "kv-heads": 2,
    "head-dim": 10,
    "vocab": 2100,
    "positions": 64,
}


def make_toy(directory: Path, *options: str, **sizes: int) -> Path:
    flags = [text for name, size in (TOY | sizes).items() for text in (f"--{name}", str(size))]
    assert main([str(directory), *flags, *options]) == 0
    return directory


def numbers(directory: Path) -> dict[str, np.ndarray]:
    return {name: tensor.read_float32() for name, tensor in open_checkpoint(directory).tensors.items()}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return set(a) == set(b) and all((a[name] == b[name]).all() for name in a)


@pytest.mark.parametrize("format", ["safetensors", "bin"])
@pytest.mark.parametrize("options", [["--shards", "3"], ["--tied", "--dtype", "float16"]])
def test_transformers_loads_it(tmp_path: Path, format: str, options: list[str]) -> None:
    directory = make_toy(tmp_path, "--format", format, *options)
    model, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)

    assert not any(info.values())  # nothing missing, left over or of another shape
    assert model.config.tie_word_embeddings == ("--tied" in options)
    assert model.dtype == (torch.float16 if "--tied" in options else torch.bfloat16)
    assert model.config.rope_parameters["rope_theta"] == 10000
    state = model.state_dict()
    for name, expected in numbers(directory).items():
        assert (state[name].float().numpy() == expected).all()
    assert AutoTokenizer.from_pretrained(directory).encode("Once upon a time")


def test_greedy_tokens_vary_and_are_clear(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_toy(tmp_path), dtype=torch.float32)
    prompt = torch.tensor([[1, 5, 9, 40]])
    result = model.generate(
        prompt,
        max_new_tokens=40,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    assert len(set(result.sequences[0, 4:].tolist())) > 30
    logits = torch.stack(result.scores)[:, 0]
    assert 1 < logits.std() < 2
    best, second = logits.topk(2).values.T
    assert (best - second).median() > 0.05


@pytest.mark.parametrize("shards", [1, 2, 5, 29])
def test_the_seed_decides_and_nothing_else(tmp_path: Path, shards: int) -> None:
    one = numbers(make_toy(tmp_path / "one"))
    assert same(one, numbers(make_toy(tmp_path / "again", "--format", "bin", "--shards", str(shards))))

    other = numbers(make_toy(tmp_path / "other", "--seed", "1"))
    assert not any((one[name] == other[name]).all() for name in one)

    deeper = numbers(make_toy(tmp_path / "deeper", layers=4))
    assert same(one, {name: deeper[name] for name in one})
    assert not (one["lm_head.weight"] == one["model.embed_tokens.weight"]).all()


def test_what_is_drawn(tmp_path: Path) -> None:
    for name, values in numbers(make_toy(tmp_path, "--dtype", "float32")).items():
        expected = (1, 0.1) if values.ndim == 1 else (0, 1.5 / values.shape[-1] ** 0.5)
        error = 5 * expected[1] / values.size**0.5
        assert values.mean() == pytest.approx(expected[0], abs=error), name
        assert values.std() == pytest.approx(expected[1], abs=error), name


def test_pieces_are_one_draw(tmp_path: Path) -> None:
    for piece in (4, 1 << 20):
        with open(tmp_path / str(piece), "wb") as file:
            Draws("bfloat16", 0).write(file, "a", (5, 7), piece=piece)
    assert (tmp_path / "4").read_bytes() == (tmp_path / str(1 << 20)).read_bytes()
    assert (tmp_path / "4").stat().st_size == 70


def test_shards_are_even() -> None:
    sizes = dict(zip(SIZES, SHAPES["tinyllama-1.1b"], strict=True))
    shapes = tensors(sizes, tied=False)
    assert sum(np.prod(shape) for shape in shapes.values()) == 1_100_048_384  # TinyLlama's own number
    parts = list(split(shapes, 4))
    assert [name for part in parts for name in part] == list(shapes)
    counts = [sum(np.prod(shape) for shape in part.values()) for part in parts]
    assert max(counts) < 1.2 * min(counts)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--shards", "0"], "--shards 0: give 1 to 30"),
        (["--shards", "31"], "--shards 31: give 1 to 30"),
        (["--layers", "0"], "--layers 0: give at least 1"),
        (["--kv-heads", "4"], "--heads 6 is not a multiple of --kv-heads 4"),
        (["--head-dim", "9"], "--head-dim 9 is odd"),
        (["--shape", "70b"], "invalid choice"),
    ],
)
def test_refused(tmp_path: Path, options: list[str], complaint: str, capsys: Any) -> None:
    flags = [text for name, size in TOY.items() for text in (f"--{name}", str(size))]
    assert main([str(tmp_path), *flags, *options]) == 2
    assert complaint in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_other_weights_are_left_alone(tmp_path: Path, capsys: Any) -> None:
    directory = make_toy(tmp_path)
    before = (directory / "model.safetensors").read_bytes()
    assert main([str(directory), "--seed", "1"]) == 2
    assert "has weights already (model.safetensors)" in capsys.readouterr().err
    assert (directory / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("options", [[], ["--format", "bin"]])
def test_a_failure_leaves_no_checkpoint(
    tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def write(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Draws, "write", write)
    flags = [text for name, size in TOY.items() for text in (f"--{name}", str(size))]
    assert main([str(tmp_path), *flags, *options]) == 1
    assert "No space left" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_index(tmp_path: Path) -> None:
    directory = make_toy(tmp_path, "--shards", "2")
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(
        tensor.length for tensor in open_checkpoint(directory).tensors.values()
    )
    assert sorted(set(index["weight_map"].values())) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
