"""A package that all engines run, and what transformers generates with its checkpoint."""

from __future__ import annotations

import numpy as np
import pytest

from o2o.filters import fuse_attention, merge_circles, reshape_io, transpose_io_kvcache
from runtime_py.package import Package
from tests.exported import SHAPES, checkpoint

S = 32


@pytest.fixture(scope="session", params=["demo", "grouped"])
def shape(request) -> str:
    """The name of a checkpoint's shape."""
    return request.param


@pytest.fixture(scope="session")
def pipeline_package(shape, exported_model, tmp_path_factory) -> Package:
    """A package as the pipeline of the README makes it."""
    folder = tmp_path_factory.mktemp(shape)
    config = SHAPES[shape]
    heads, size = config["num_key_value_heads"], config["head_dim"]
    decode = exported_model(shape, "concat")
    shapes = [f"[1,{heads},{rows},{size}]" for rows in (S - 2, S)]
    steps = [(fuse_attention, []), (reshape_io, ["input", "--by_shape", *shapes]), (transpose_io_kvcache, [])]
    for number, (step, args) in enumerate(steps):
        done = folder / f"{number}.circle"
        assert step.main([*args, str(decode), "-o", str(done)]) == 0
        decode = done
    graphs = [str(exported_model(shape, "prefill")), str(decode.rename(folder / "decode.circle"))]
    assert merge_circles.main([*graphs, "-o", str(folder / "model.circle")]) == 0
    return Package.load(folder)


@pytest.fixture(scope="session")
def reference(shape, shared_directory) -> tuple[list[int], dict[int, list[int]]]:
    """A text, and by length of a prefix of it the greedy tokens of transformers, up to the capacity."""
    import torch
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(checkpoint(shared_directory, shape))
    text = np.random.default_rng(1).integers(3, theirs.config.vocab_size, S).tolist()
    expected = {}
    for length in (1, 5, S - 1, S):
        prompt = torch.tensor([text[:length]])
        ids = theirs.generate(prompt, do_sample=False, max_length=S + 1, eos_token_id=-1)
        expected[length] = ids[0, length:].tolist()
    return text, expected
