"""The guide as it stands, typed in an empty folder: what it makes says what Hugging Face's `generate` says.

On the demo model, on a random grouped-query model of odd sizes, and, where it lies beside the repository,
on a trained checkpoint that nobody here made (stories260K).
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from filelock import FileLock

from bench.llama2c import convert
from export import pipeline
from runtime_py.engines.registry import installed
from runtime_py.generation.generate import generate
from runtime_py.generation.generation_config import GenerationConfig
from runtime_py.generation.session import Session
from runtime_py.generation.session_pool import SessionPool
from runtime_py.package import Package
from tests.checkpoints import GROUPED, write_checkpoint
from tests.conftest import ROOT
from tests.o2o.formats.tico import verifier_errors
from tests.pipelines import in_process
from tests.tolerances import assert_close

SCRIPT = ROOT / "tinyllama" / "tinyllama.py"
DEMO = ROOT / "tinyllama" / "demo" / "checkpoint"
STORIES = ROOT.parent / "shared" / "data" / "stories260K" / "stories260K.bin"

GUIDE = f"""
python {SCRIPT} --mode prefill
python {SCRIPT} --mode decode
fuse.attention.py < decode_.circle | reshape.io.py input --by_shape [1,16,30,4] [1,16,32,4] | transpose.io.kvcache.py > decode.circle
merge.circles.py prefill.circle decode.circle | fuse.bmm_lhs_const.py | downcast.input_ids.py | gc.py > model.circle
"""  # noqa: E501 - verbatim
RUN = "python -m runtime_py.run tinyllama"

WITHOUT_TOKENIZER = SimpleNamespace(vocab_size=1)  # these checkpoints have none: ids are compared

PROMPTS = [
    "Lily picked up a flower.",
    "Once upon a time",
    "Tom was sad because",
    "The little dog",
    "One day, Mia went to the park with her mom.",
    "A",
    "She",
    "The ball was red.",
    "Ben had a big blue kite and he liked to fly it",
    "\n",
    "Once upon a time, there was a little girl named Lily. She liked to play",
    "🙂 Max saw a cat.",
    "He said,",
    "It was a sunny day",
    "The rain began to fall and the",
    "Sam and Anna wanted to bake a cake for their grandma, so they",
    "  two  spaces",
    "A bird could not fly.",
    "Mom smiled. \"Thank you",
    "Zoe found a key in the",
    "1 2 3",
    "They were happy and they went home. The end.",
]  # fmt: skip


def shell(commands: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Type `commands` in `folder` with the virtual environment active."""
    bin_ = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", "-euo", "pipefail", "-c", commands]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="session")
def guided(shared_directory: Path) -> Path:
    """The folder in which the guide was typed."""
    folder = shared_directory / "guide"
    with FileLock(shared_directory / "guide.lock"):
        if not folder.exists():
            folder.mkdir()
            done = shell(GUIDE, folder)
            assert done.returncode == 0, done.stderr
            assert done.stdout == ""
            lines = done.stderr.splitlines()
            assert all(re.match(r"[a-z_.]+\.py: ", line) for line in lines), done.stderr
            assert lines[0].startswith("tinyllama.py: wrote prefill.circle, ")
            assert lines[1].startswith("tinyllama.py: wrote decode_.circle, ")
    return folder


def package_of(checkpoint: Path, package: Path, length: int) -> Path:
    """The same pipeline for any checkpoint, as `make package` runs it, in this process."""
    with FileLock(f"{package}.lock"):
        if not (package / "model.circle").exists():
            flags = ["--model", str(checkpoint), "--package", str(package), "--max-length", str(length)]
            with in_process(package.parent):
                assert pipeline.main(flags) == 0
    return package


@functools.cache
def theirs(checkpoint: Path):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


@functools.cache
def generated_by_transformers(
    checkpoint: Path, prompt: tuple[int, ...], length: int
) -> tuple[list[int], np.ndarray]:
    """Greedy tokens after `prompt` up to `length` in all, and the logits [V] after the prompt."""
    import torch

    model, ids = theirs(checkpoint), torch.tensor([prompt])
    tokens = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_length=length)
    with torch.no_grad():
        logits = model(ids).logits[0, -1].numpy()
    return tokens[0, len(prompt) :].tolist(), logits


def assert_generates_the_same(
    package: Package,
    checkpoint: Path,
    prompts: list[list[int]],
    buckets: Sequence[int] = (),
    engine: str = "litert",
) -> None:
    """Greedy tokens to the end of the context, and the logits after each prompt within 1e-4.

    buckets: of additional decode graphs, on LiteRT.
    """
    untold = SimpleNamespace(push=lambda token: "", flush=lambda: "")
    started = package.engine(buckets=buckets if engine == "litert" else None, engine=engine)
    session, config = Session(SessionPool(started)), GenerationConfig(eos_token_id=tuple(package.eos))
    for prompt in prompts:
        tokens, logits = generated_by_transformers(checkpoint, tuple(prompt), started.capacity + 1)
        found = [token.id for token in generate(session, prompt, untold, config=config)]
        assert found == tokens
        assert_close(session.read(prompt), logits)
    started.close()


def test_the_guide_verbatim(guided: Path) -> None:
    done = shell(RUN, guided)
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first == "prompt: Lily picked up a flower."
    assert second.startswith("generated: { ")
    assert third.startswith("detokenized: ")


def test_samsungs_reader_verifies_the_package(guided: Path) -> None:
    done = shell("tico-circle verify model.circle", guided)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_demo_model_says_what_transformers_says(guided: Path) -> None:
    from transformers import AutoTokenizer

    package = Package.load(guided / "tinyllama")
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    prompts = [tokenizer(text).input_ids for text in PROMPTS]
    assert [package.tokenizer.encode(text) for text in PROMPTS] == prompts
    story = tokenizer(" ".join(PROMPTS[4:12])).input_ids
    prompts += [story[:length] for length in (1, 29, 30, 31, 32)]
    prompts = [prompt for prompt in prompts if len(prompt) <= 32]
    assert len({len(prompt) for prompt in prompts}) > 10
    for engine in installed():
        assert_generates_the_same(package, DEMO, prompts, engine=engine)


def test_a_random_grouped_model_says_what_transformers_says(shared_directory: Path) -> None:
    checkpoint = shared_directory / "grouped-checkpoint"
    with FileLock(shared_directory / "grouped-checkpoint.lock"):
        if not checkpoint.exists():
            write_checkpoint(checkpoint, **GROUPED)
    package = Package.load(package_of(checkpoint, shared_directory / "grouped-package", 24))
    package.tokenizer = WITHOUT_TOKENIZER
    generator = np.random.default_rng(0)
    prompts = [generator.integers(3, GROUPED["vocab_size"], length).tolist() for length in range(1, 25)]
    for engine in installed():
        assert_generates_the_same(package, checkpoint, prompts, engine=engine)
    assert_generates_the_same(package, checkpoint, prompts, buckets=[2, 5, 6, 16, 23])
    assert verifier_errors((shared_directory / "grouped-package" / "model.circle").read_bytes()) == []


@pytest.mark.skipif(not STORIES.exists(), reason="stories260K does not lie beside this repository")
def test_stories260k_says_what_transformers_says(shared_directory: Path) -> None:
    checkpoint = convert(STORIES, shared_directory / "stories260K")
    package = Package.load(package_of(checkpoint, shared_directory / "stories-package", 128))
    package.tokenizer = WITHOUT_TOKENIZER
    story = [1, *theirs(checkpoint).generate(max_length=128, do_sample=False, bos_token_id=1)[0, 1:].tolist()]
    generator = np.random.default_rng(0)
    prompts = [story[:length] for length in (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 127, 128)]
    prompts += [
        [1, *generator.integers(3, 512, length).tolist()] for length in (1, 4, 9, 16, 31, 60, 100, 126)
    ]
    assert_generates_the_same(package, checkpoint, prompts, buckets=[32, 64])
