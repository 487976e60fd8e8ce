"""Export, filters, lowering and LiteRT on random checkpoints, compared with transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from o2o.filters import fuse_attention, merge_circles, reshape_io, transpose_io_kvcache
from o2o.formats import save
from runtime_py.engines import prepared_artifacts
from runtime_py.engines.disk_cache import user_cache
from runtime_py.generation.generate import generate
from runtime_py.generation.session import Session
from runtime_py.package import Package
from runtime_py.text.detokenizer import Detokenizer
from tests.checkpoints import DEMO, GROUPED, write_checkpoint
from tests.compiled import compiled_once
from tests.runtime_py.tokenizers_on_disk import LLAMA, write_config, write_llama_json, write_sentencepiece
from tests.tolerances import assert_close

T, S = 12, 20


def concat(folder: Path, config: dict) -> list[str]:
    """As in the README's pipeline: a concatenated cache, fused into one that is updated in place."""
    from export import build_graph

    save(build_graph.prefill(folder, T), folder / "prefill.circle")
    heads, size = config["num_key_value_heads"], config["head_dim"]
    save(build_graph.decode(folder, S - 2, "concat"), folder / "decode_.circle")
    steps = [
        (fuse_attention, []),
        (reshape_io, ["input", "--by_shape", f"[1,{heads},{S - 2},{size}]", f"[1,{heads},{S},{size}]"]),
        (transpose_io_kvcache, []),
    ]
    path = folder / "decode_.circle"
    for number, (step, args) in enumerate(steps):
        out = folder / f"step{number}.circle"
        assert step.main([*args, str(path), "-o", str(out)]) == 0
        path = out
    path.rename(folder / "decode.circle")
    return ["prefill", "decode"]


def static(folder: Path, config: dict) -> list[str]:
    """A cache of the final size, written into by the exported graph itself."""
    from export import build_graph

    save(build_graph.prefill(folder, T), folder / "prefill.circle")
    save(build_graph.decode(folder, S, "static"), folder / "decode.circle")
    return ["prefill", "decode"]


def several(folder: Path, config: dict) -> list[str]:
    """Prefills that start anywhere; S is a multiple of none of their lengths."""
    from export import build_graph

    graphs = {f"prefill_{length}": build_graph.prefill(folder, length, capacity=S) for length in (3, 6, 8)}
    graphs["decode"] = build_graph.decode(folder, S, "static")
    for name, graph in graphs.items():
        save(graph, folder / f"{name}.circle")
    return list(graphs)


SHAPE = GROUPED | {"num_hidden_layers": 2}
FORMS = {"concat": (concat, SHAPE), "static": (static, DEMO), "several": (several, SHAPE)}


@pytest.fixture(scope="module", params=FORMS.values(), ids=FORMS)
def package(request, shared_directory, tmp_path_factory) -> Path:
    make: Callable[[Path, dict], list[str]]
    make, config = request.param
    folder = write_checkpoint(tmp_path_factory.mktemp("package"), **config)
    with compiled_once(shared_directory):
        graphs = [str(folder / f"{name}.circle") for name in make(folder, config)]
    assert merge_circles.main([*graphs, "-o", str(folder / "model.circle")]) == 0
    size = {"vocab_size": config["vocab_size"]}
    if size["vocab_size"] < 300:  # too few for bytes
        size |= {"byte_fallback": False, "hard_vocab_limit": False}
    pieces = write_config(write_sentencepiece(folder / "pieces", **size), **LLAMA)
    return write_llama_json(folder, pieces)


@pytest.fixture(scope="module")
def theirs(package):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(package)


def test_logits_after_every_prompt_and_every_step(package, theirs):
    import torch

    ids = np.random.default_rng(0).integers(0, theirs.config.vocab_size, S).tolist()
    with torch.no_grad():
        wanted = theirs(torch.tensor([ids])).logits[0].numpy()
    engine = Package.load(package).engine(threads=1, engine="litert")
    session = engine.open_session()
    assert engine.capacity == S
    for length in range(1, S + 1):
        assert_close(session.prefill(ids[:length]), wanted[length - 1])
        for position in range(length, min(length + 3, S)):
            assert_close(session.decode(ids[position], position), wanted[position])
    session.prefill(ids[:1])
    for position in range(1, S):
        assert_close(session.decode(ids[position], position), wanted[position])
    engine.close()


def test_greedy_tokens_after_every_prompt(package, theirs):
    import torch

    ids = np.random.default_rng(1).integers(0, theirs.config.vocab_size, S).tolist()
    loaded = Package.load(package)
    engine = loaded.engine(threads=1, engine="litert")
    for length in range(1, S + 1):
        prompt = torch.tensor([ids[:length]])
        expected = theirs.generate(prompt, do_sample=False, max_length=S + 1, eos_token_id=-1)[0, length:]
        tokens = generate(Session(engine.open_session()), ids[:length], Detokenizer(loaded.tokenizer))
        assert [token.id for token in tokens] == expected.tolist()
    engine.close()


def test_weights_packed_once_for_all_signatures(package, monkeypatch, tmp_path):
    monkeypatch.setattr(prepared_artifacts, "MIN_BYTES", 0)
    monkeypatch.setenv("O2O_CACHE", str(tmp_path))
    loaded = Package.load(package)
    ids = [*range(3, 17)]
    expected = []
    for cache in (None, user_cache(), user_cache()):
        engine = loaded.engine(threads=1, disk_cache=cache, engine="litert")
        tokens = generate(Session(engine.open_session()), ids, Detokenizer(loaded.tokenizer))
        expected.append([token.id for token in tokens])
        engine.close()
    assert expected[0] == expected[1] == expected[2]
    (packed,) = tmp_path.glob("*/packed")
    assert packed.stat().st_size < 1.25 * loaded.model.stat().st_size


def test_run_prints_what_transformers_generates(package, theirs, run_module):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(package)
    prompt = "Lily picked"
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    expected = theirs.generate(ids, do_sample=False, max_length=S + 1)[0, ids.shape[1] :].tolist()
    done = run_module("runtime_py.run", package, "--prompt", prompt)
    full = f"run: the context is full: the KV caches hold {S} tokens; export the model with a"
    assert done.stderr == (
        "" if expected[-1] == theirs.config.eos_token_id else f"{full} larger --max-length for longer texts\n"
    )
    text = tokenizer.decode(expected, skip_special_tokens=True)
    assert done.stdout == (
        f"prompt: {prompt}\ngenerated: {{ {', '.join(map(str, expected))} }}\ndetokenized: {text}\n"
    )
