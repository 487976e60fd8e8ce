"""generation_config.json: what counts, what is refused, and what is not supported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from o2o.errors import ModelError
from runtime_py.generation.generation_config import GenerationConfig, read_generation_config
from runtime_py.generation.sampling import Sampling

TYPICAL = {
    "_from_model_config": True,
    "bos_token_id": 1,
    "pad_token_id": 0,
    "cache_implementation": "hybrid",
    "transformers_version": "4.41.0",
    "of_the_future": {"x": [1]},
    "length_penalty": 2.0,
    "early_stopping": True,
    "num_beams": 1,
    "temperature": None,
}


def read(folder: Path, config: Any = None, **files: Any) -> GenerationConfig:
    """`config` is generation_config.json; `files` are other files."""
    for name, content in (files | {"generation_config": config}).items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return read_generation_config(folder)


@pytest.mark.parametrize(
    ("config", "sampling"),
    [
        ({}, Sampling(do_sample=False)),
        ({"do_sample": None, "top_p": 0.9}, Sampling(do_sample=False, top_p=0.9)),
        ({"do_sample": False, "temperature": 0.0}, Sampling(do_sample=False, temperature=0.0)),
        ({"do_sample": True}, Sampling(do_sample=True, top_k=50)),
        ({"do_sample": True, "top_k": None}, Sampling(do_sample=True, top_k=50)),
        ({"do_sample": True, "top_k": 0}, Sampling(do_sample=True, top_k=0)),
        (
            {"sequence_bias": [[[1, 2], -1.5], [[3], 2]]},
            Sampling(do_sample=False, sequence_bias={(1, 2): -1.5, (3,): 2}),
        ),
        ({"seed": 3, "greedy": True, "logit_bias": 5}, Sampling(do_sample=False)),
    ],
)
def test_the_choice_of_tokens(tmp_path, config, sampling):
    assert read(tmp_path, config | TYPICAL | config).sampling == sampling


def test_lengths_and_ends(tmp_path):
    found = read(tmp_path, {"max_length": 30, "min_new_tokens": 2, "eos_token_id": 3, "stop_strings": "x"})
    assert (found.eos_token_id, found.stop_strings, found.unsupported) == ((3,), ("x",), ())
    assert (found.length_limit(5), found.length_limit(5, 7), found.smallest_length(5)) == (30, 12, 7)
    found = read(tmp_path, {"eos_token_id": [3, 4], "stop_strings": ["x", "y"], "max_time": 2})
    assert (found.eos_token_id, found.stop_strings, found.max_time) == ((3, 4), ("x", "y"), 2)
    assert (found.length_limit(5), found.smallest_length(5)) == (None, 0)


def test_without_the_file_config_json_counts(tmp_path):
    config = {"do_sample": True, "temperature": 0.5, "top_k": 3, "eos_token_id": 2, "hidden_size": 8}
    found = read(tmp_path, config=None)
    assert found.sampling == Sampling(do_sample=False)
    (tmp_path / "config.json").write_text(json.dumps(config))
    expected = Sampling(do_sample=True, temperature=0.5, top_k=3)
    assert read(tmp_path).sampling == expected
    found = read(tmp_path, {"max_length": 9})
    assert (found.sampling, found.eos_token_id) == (Sampling(do_sample=False), (2,))


def test_settings_in_the_config_of_the_text_model(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps(
            {"text_config": {"eos_token_id": 7, "min_length": 3}, "min_length": 4, "eos_token_id": None}
        )
    )
    found = read(tmp_path)
    assert (found.eos_token_id, found.min_length) == ((7,), 4)


@pytest.mark.parametrize(
    ("config", "sampling", "eos"),
    [
        (
            {
                "bos_token_id": 128000,
                "do_sample": True,
                "eos_token_id": [128001, 128008, 128009],
                "temperature": 0.6,
                "top_p": 0.9,
                "transformers_version": "4.45.0.dev0",
            },
            Sampling(do_sample=True, temperature=0.6, top_p=0.9, top_k=50),
            (128001, 128008, 128009),
        ),
        (
            {
                "bos_token_id": 151643,
                "pad_token_id": 151643,
                "do_sample": True,
                "eos_token_id": [151645, 151643],
                "repetition_penalty": 1.05,
                "temperature": 0.7,
                "top_p": 0.8,
                "top_k": 20,
                "transformers_version": "4.37.0",
            },
            Sampling(do_sample=True, repetition_penalty=1.05, temperature=0.7, top_p=0.8, top_k=20),
            (151645, 151643),
        ),
        (
            {
                "cache_implementation": "hybrid",
                "do_sample": True,
                "eos_token_id": [1, 106],
                "pad_token_id": 0,
                "top_k": 64,
                "top_p": 0.95,
            },
            Sampling(do_sample=True, top_k=64, top_p=0.95),
            (1, 106),
        ),
        (
            {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
            Sampling(do_sample=False),
            (2,),
        ),
    ],
    ids=["llama-3", "qwen2.5", "gemma-3", "mistral"],
)
def test_files_of_common_checkpoints(tmp_path, config, sampling, eos):
    found = read(tmp_path, config)
    assert (found.sampling, found.eos_token_id, found.unsupported) == (sampling, eos, ())


@pytest.mark.parametrize(
    ("config", "unsupported"),
    [
        ({"num_beams": 4, "penalty_alpha": 0.6}, ["num_beams", "penalty_alpha"]),
        ({"guidance_scale": 1.5, "num_return_sequences": 2}, ["num_return_sequences", "guidance_scale"]),
        (
            {"watermarking_config": {"bias": 2}, "token_healing": True},
            ["watermarking_config", "token_healing"],
        ),
        (
            {"num_beams": 1, "guidance_scale": 1, "penalty_alpha": 0, "use_mtp": False, "dola_layers": None},
            [],
        ),
        ({"penalty_alpha": 0.6, "do_sample": True}, []),
        (TYPICAL, []),
    ],
)
def test_what_is_not_supported(tmp_path, config, unsupported):
    assert list(read(tmp_path, config).unsupported) == unsupported


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"temperature": "hot"}, "temperature is 'hot': it must be a number of 0 or more"),
        ({"temperature": -1}, "temperature is -1"),
        ({"do_sample": True, "temperature": 0}, "temperature is 0 and do_sample is true"),
        ({"do_sample": "yes"}, "do_sample is 'yes': it must be true or false"),
        ({"top_k": 50.5}, "top_k is 50.5: it must be an integer"),
        ({"top_p": 2}, "top_p is 2"),
        ({"eos_token_id": True}, "eos_token_id is True"),
        ({"eos_token_id": [[1]]}, r"eos_token_id is \[\[1\]\]"),
        ({"bad_words_ids": [[1], 2]}, "bad_words_ids"),
        ({"sequence_bias": {"1": 2}}, "sequence_bias"),
        ({"sequence_bias": [[[1], "x"]]}, "sequence_bias"),
        ({"sequence_bias": [[[[1]], 2]]}, "sequence_bias"),
        ({"sequence_bias": [1]}, "sequence_bias"),
        ({"suppress_tokens": "1"}, "suppress_tokens is '1'"),
        ({"max_length": 0}, "max_length is 0: it must be an integer of 1 or more"),
        ({"max_new_tokens": "many"}, "max_new_tokens is 'many'"),
        ({"max_time": [1]}, r"max_time is \[1\]"),
        ({"stop_strings": [1]}, r"stop_strings is \[1\]: it must be a string or a list of strings"),
        ({"stop_strings": ["x", ""]}, "stop_strings is .*none of them empty"),
        ({"repetition_penalty": 10**400}, "repetition_penalty is 1000"),
        ({"num_beams": "four"}, "num_beams is 'four'"),
        ({"exponential_decay_length_penalty": [1, 2, 3]}, "exponential_decay_length_penalty"),
        (["x"], "is not a JSON object"),
    ],
)
def test_a_damaged_file(tmp_path, config, message):
    with pytest.raises(ModelError, match=rf"generation_config.json.*{message}") as raised:
        read(tmp_path, config)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_json(tmp_path):
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"generation_config.json is not JSON"):
        read(tmp_path)
