"""Export, filters, lowering and LiteRT on random checkpoints, compared with transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from o2o.filters import fuse_attention, merge_circles, reshape_io, transpose_io_kvcache
from o2o.formats import save
from o2o.streams.disk_cache import user_cache
from runtime_py.engines import prepared_artifacts
from runtime_py.generation.generate import generate
from runtime_py.generation.generation_config import read_generation_config
from runtime_py.generation.session import Session
from runtime_py.generation.session_pool import SessionPool
from runtime_py.package import Package
from runtime_py.text.detokenizer import Detokenizer
from tests.checkpoints import DEMO, GROUPED, write_checkpoint
from tests.compiled import compiled_once
from tests.runtime_py.tokenizers_on_disk import LLAMA, write_config, write_llama_json, write_sentencepiece
from tests.tolerances import assert_close

T, S = 12, 20
FIRST, SECOND, THIRD = "first", "second", "third"


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
def engine(package):
    with closing(Package.load(package).engine(threads=1, engine="litert")) as loaded:
        yield loaded


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
        tokens = generate(Session(SessionPool(engine)), ids[:length], Detokenizer(loaded.tokenizer))
        assert [token.id for token in tokens] == expected.tolist()
    engine.close()


SETTINGS = {
    "repetition_penalty": {"repetition_penalty": 1.5},
    "encoder_penalty": {"encoder_repetition_penalty": 0.8, "encoder_no_repeat_ngram_size": 1},
    "ngrams": {"no_repeat_ngram_size": 1},
    "bad_words": {"bad_words_ids": [[FIRST], [SECOND, THIRD]]},
    "bias": {"sequence_bias": [[[FIRST], -3.0], [[9], 2.5], [[9, 9], -5.0]]},
    "suppress": {"suppress_tokens": [SECOND], "begin_suppress_tokens": [FIRST]},
    "forced_eos": {"max_length": 9, "forced_eos_token_id": [7]},
    "max_new_tokens": {"max_new_tokens": 4, "max_length": 6},
    "several_eos": {"eos_token_id": [THIRD, 5]},
    "min_length": {"eos_token_id": [FIRST, SECOND], "min_length": 12},
    "min_new_tokens": {"eos_token_id": FIRST, "min_new_tokens": 2},
    "decay": {"eos_token_id": 5, "exponential_decay_length_penalty": [3, 1.6]},
    "ignored": {"temperature": 0.1, "top_k": 3, "top_p": 0.5, "typical_p": 0.5, "min_p": 0.3},
    "all": {
        "eos_token_id": [5, FIRST],
        "min_length": 8,
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 3,
        "bad_words_ids": [[SECOND]],
        "remove_invalid_values": True,
        "renormalize_logits": True,
        "exponential_decay_length_penalty": [6, 1.3],
    },
}
"""Settings without random choice. FIRST, SECOND and THIRD stand for the tokens of greedy decoding."""


@pytest.mark.parametrize("package", [FORMS["several"]], ids=["several"], indirect=True)
@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_checkpoint(package, theirs, engine, name, tmp_path):
    """The whole text by `generate` with the same generation_config.json, and with a prompt of one token."""
    import torch
    from transformers import GenerationConfig

    # By greedy decoding, 129, 68, 126, 126, 22 follow 3, 9, 4, 3, 9.
    prompts, changed = [[3, 9, 4, 3, 9, 129, 68, 126], [1]], []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        plain = theirs.generate(ids, do_sample=False, max_length=S + 1, eos_token_id=-1)[0, len(prompt) :]
        settings = SETTINGS[name] | ({"forced_bos_token_id": 8} if name == "all" else {})
        settings = placed(settings, plain.tolist())
        (tmp_path / "generation_config.json").write_text(json.dumps({"max_length": S + 1} | settings))
        config = GenerationConfig.from_pretrained(tmp_path)
        expected = theirs.generate(ids, generation_config=config)[0, len(prompt) :].tolist()
        ours = generate(
            Session(SessionPool(engine)),
            prompt,
            Detokenizer(Package.load(package).tokenizer),
            config=read_generation_config(tmp_path),
        )
        assert [token.id for token in ours] == expected
        changed.append(expected != plain.tolist())
    assert any(changed) == (name != "ignored")


def placed(settings, tokens: list[int]):
    """Settings with tokens in place of FIRST, SECOND and THIRD."""
    if isinstance(settings, dict):
        return {key: placed(value, tokens) for key, value in settings.items()}
    if isinstance(settings, list):
        return [placed(value, tokens) for value in settings]
    return tokens[(FIRST, SECOND, THIRD).index(settings)] if isinstance(settings, str) else settings


def test_weights_packed_once_for_all_signatures(package, monkeypatch, tmp_path):
    monkeypatch.setattr(prepared_artifacts, "MIN_BYTES", 0)
    monkeypatch.setenv("O2O_CACHE", str(tmp_path))
    loaded = Package.load(package)
    ids = [*range(3, 17)]
    expected = []
    for cache in (None, user_cache(), user_cache()):
        engine = loaded.engine(threads=1, disk_cache=cache, engine="litert")
        tokens = generate(Session(SessionPool(engine)), ids, Detokenizer(loaded.tokenizer))
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
    full = f"run: the context is full: the KV caches hold {S} tokens; convert the model with a"
    assert done.stderr == (
        "" if expected[-1] == theirs.config.eos_token_id else f"{full} larger --max-length for longer texts\n"
    )
    text = tokenizer.decode(expected, skip_special_tokens=True)
    assert done.stdout == (
        f"prompt: {prompt}\ngenerated: {{ {', '.join(map(str, expected))} }}\ndetokenized: {text}\n"
    )
