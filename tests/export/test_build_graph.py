"""What is exported computes what Hugging Face computes, on LiteRT, from the file that was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import build_graph
from export.circle import convert_to_circle
from export.model import LanguageModel
from export.modules import PrefillModule
from o2o import formats
from o2o.contract import Role
from o2o.errors import ModelError, UsageError
from o2o.lower.litert import lower_to_litert
from o2o.model import Model
from tests.checkpoints import DEMO, GROUPED, write_checkpoint
from tests.compiled import compiled_once
from tests.export.conftest import exported, on_litert, reference
from tests.o2o import graphs
from tests.tolerances import assert_close


def ends(values: dict[str, Any]) -> dict[str, tuple[list[int], str]]:
    return {name: (list(value.shape.numpy()), str(value.dtype)) for name, value in values.items()}


def roles(values: dict[str, Any]) -> dict[str, Role]:
    return {name: value.meta["role"] for name, value in values.items()}


def caches(prefix: str, shape: list[int], layers: int) -> dict[str, tuple[list[int], str]]:
    """{prefix_key_0: ..., prefix_value_0: ..., prefix_key_1: ...}: order matters."""
    return {f"{prefix}_{what}_{n}": (shape, "FLOAT") for n in range(layers) for what in ("key", "value")}


def in_order(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    return list(found.items()) == list(expected.items())


@pytest.fixture(scope="module", params=["demo", "grouped"])
def directory(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def test_prefill(directory: Path) -> None:
    run, expected = on_litert(exported(directory, "prefill")), reference(directory)
    result = run({"input_ids": expected.input_ids})

    assert_close(result["logits"], expected.logits)
    for layer, (key, value) in enumerate(zip(expected.keys, expected.values, strict=True)):
        assert_close(result[f"present_key_{layer}"], key)
        assert_close(result[f"present_value_{layer}"], value)


def test_decode_concat_at_every_position(directory: Path) -> None:
    run, expected = on_litert(exported(directory, "concat")), reference(directory)
    for position in range(31):  # with no past, with some, with all that fits
        token = expected.input_ids[:, position : position + 1]
        feeds = expected.past(position, 30) | {"input_ids": token, "cache_position": np.array([position])}
        result = run(feeds)
        assert list(result) == ["logits"]
        assert_close(result["logits"][0, 0], expected.logits[0, position])


def test_decode_static_from_an_empty_cache(directory: Path) -> None:
    run, expected = on_litert(exported(directory, "static")), reference(directory)
    feeds = expected.past(0, 32)
    for position in range(32):
        token = expected.input_ids[:, position : position + 1]
        result = run(feeds | {"input_ids": token, "cache_position": np.array([position])})
        assert_close(result.pop("logits")[0, 0], expected.logits[0, position])
        feeds = {name.replace("present", "past"): cache for name, cache in result.items()}
    assert_close(feeds["past_key_1"], expected.keys[1])
    assert_close(feeds["past_value_1"], expected.values[1])


@pytest.mark.parametrize("length", [1, 5, 8, 11, 17, 24])
def test_prefill_in_pieces_onto_static_caches(directory: Path, length: int) -> None:
    """Pieces of 8 as long as they fit, the last one padded, from a cache full of what must not be seen."""
    run, expected = on_litert(exported(directory, "pieces")), reference(directory)
    feeds, logits = expected.past(0, 24), []
    for position in range(0, length, 8):
        count = min(8, length - position)
        piece = np.zeros((1, 8), np.int64)
        piece[:, :count] = expected.input_ids[:, position : position + count]
        result = run(feeds | {"input_ids": piece, "cache_position": np.array([position])})
        logits.append(result.pop("logits")[0, :count])
        feeds = {name.replace("present", "past"): cache for name, cache in result.items()}
    found = np.concatenate(logits)
    assert_close(found, expected.logits[0, :length])
    assert found.argmax(-1).tolist() == expected.logits[0, :length].argmax(-1).tolist()
    assert_close(feeds["past_key_1"][:, :, :length], expected.keys[1][:, :, :length])


def test_prefill_at_every_position(directory: Path) -> None:
    """Up to the last one, S - T; what else the caches hold stays as it was."""
    run, expected = on_litert(exported(directory, "pieces")), reference(directory)
    for position in range(24 - 8 + 1):
        piece = slice(position, position + 8)
        past = expected.past(position, 24)
        result = run(
            past | {"input_ids": expected.input_ids[:, piece], "cache_position": np.array([position])}
        )
        assert_close(result["logits"][0], expected.logits[0, piece])
        after = expected.past(position + 8, 24)
        assert_close(result["present_key_1"], after["past_key_1"])
        assert_close(result["present_value_1"], after["past_value_1"])


def test_the_ends_of_the_demo_are_those_of_the_guide(demo: Path) -> None:
    (prefill,) = exported(demo, "prefill").signatures
    assert prefill.name == "prefill"
    assert in_order(ends(prefill.inputs), {"input_ids": ([1, 32], "INT64")})
    present = caches("present", [1, 16, 32, 4], 2)
    assert in_order(ends(prefill.outputs), {"logits": ([1, 32, 512], "FLOAT")} | present)
    assert roles(prefill.inputs) == {"input_ids": Role("tokens")}
    assert roles(prefill.outputs)["logits"] == Role("logits")
    assert roles(prefill.outputs)["present_value_1"] == Role("value", 1, "BNTH")

    (decode,) = exported(demo, "concat").signatures
    assert decode.name == "decode"
    scalars = {"input_ids": ([1, 1], "INT64"), "cache_position": ([1], "INT64")}
    assert in_order(ends(decode.inputs), scalars | caches("past", [1, 16, 30, 4], 2))
    assert in_order(ends(decode.outputs), {"logits": ([1, 1, 512], "FLOAT")})
    assert roles(decode.inputs)["cache_position"] == Role("position")
    assert roles(decode.inputs)["past_key_0"] == Role("key_cache", 0, "BNTH")


def test_the_ends_of_the_static_form(grouped: Path) -> None:
    (decode,) = exported(grouped, "static").signatures
    scalars = {"input_ids": ([1, 1], "INT64"), "cache_position": ([1], "INT64")}
    assert in_order(ends(decode.inputs), scalars | caches("past", [1, 2, 32, 10], 3))
    present = caches("present", [1, 2, 32, 10], 3)
    assert in_order(ends(decode.outputs), {"logits": ([1, 1, 131], "FLOAT")} | present)
    assert roles(decode.outputs)["present_key_2"] == Role("key", 2, "BNTH")
    operators = [node.op_type for node in decode.graph]
    assert operators.count("DYNAMIC_UPDATE_SLICE") == 6


def test_the_ends_of_prefill_onto_static_caches(grouped: Path) -> None:
    (prefill,) = exported(grouped, "pieces").signatures
    assert prefill.name == prefill.graph.name == "prefill_8"
    scalars = {"input_ids": ([1, 8], "INT64"), "cache_position": ([1], "INT64")}
    assert in_order(ends(prefill.inputs), scalars | caches("past", [1, 2, 24, 10], 3))
    present = caches("present", [1, 2, 24, 10], 3)
    assert in_order(ends(prefill.outputs), {"logits": ([1, 8, 131], "FLOAT")} | present)
    assert roles(prefill.inputs)["cache_position"] == Role("position")
    assert roles(prefill.inputs)["past_value_2"] == Role("value_cache", 2, "BNTH")
    assert roles(prefill.outputs)["present_key_2"] == Role("key", 2, "BNTH")


def named_like(model: Model, name: str) -> list[str]:
    return [each for each in map(str, model.graphs[0].initializers) if name in each]


def test_names_and_constants_in_the_file(grouped: Path, demo: Path, tmp_path: Path) -> None:
    formats.save(exported(grouped, "prefill"), tmp_path / "tied.circle")
    tied = formats.load(tmp_path / "tied.circle")
    (graph,) = tied.graphs
    assert graph.name == "prefill"
    assert [value.name for value in graph.inputs] == ["input_ids"]
    assert named_like(tied, "embed_tokens") == ["model.embed_tokens.weight"]  # one constant, two readers
    assert named_like(tied, "lm_head") == []
    assert len(graph.initializers["model.embed_tokens.weight"].uses()) == 2
    names = [value.name for node in graph for value in node.outputs]
    assert len(names) == len(set(names))
    assert not [name for name in names if "::" in str(name)]
    assert {"model.layers.2.self_attn.q_proj", "model.layers.0.input_layernorm", "logits"} <= set(names)
    assert tied.signatures[0].outputs["logits"].meta["role"] == Role("logits")  # from the file's contract

    untied = exported(demo, "prefill")
    assert named_like(untied, "lm_head") == ["lm_head.weight"]


def test_bfloat16_shards_make_the_same_file_twice(tmp_path: Path) -> None:
    config = GROUPED | {"num_hidden_layers": 1, "dtype": "bfloat16"}
    one = write_checkpoint(tmp_path / "one", **config)
    three = write_checkpoint(tmp_path / "three", **config, shards=3)
    from_one, from_three = build_graph.decode(one, 4), build_graph.decode(three, 4)
    assert formats.dumps(from_one) == formats.dumps(from_three)

    expected = reference(one, 5)
    feeds = expected.past(4, 4) | {"input_ids": expected.input_ids[:, 4:], "cache_position": np.array([4])}
    assert_close(on_litert(from_one)(feeds)["logits"][0, 0], expected.logits[0, 4])


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "phi3", "gpt2"])
def test_other_families(tmp_path: Path, model_type: str) -> None:
    config = {**GROUPED, "num_hidden_layers": 1}
    if model_type != "qwen3":  # biases, or one matrix for q, k and v; and no head dimension of its own
        config.pop("head_dim")
    if model_type == "gpt2":  # which has its own words for all these
        config.pop("num_key_value_heads")
    if model_type == "phi3":
        config["pad_token_id"] = 0
    directory = write_checkpoint(tmp_path, model_type=model_type, **config)
    expected = reference(directory, 8)
    result = on_litert(build_graph.prefill(directory, 8))({"input_ids": expected.input_ids})
    assert_close(result["logits"], expected.logits)


def test_lengths_and_forms_that_cannot_be(demo: Path) -> None:
    with pytest.raises(UsageError, match="a context of 65: "):
        build_graph.prefill(demo, 65)
    with pytest.raises(UsageError, match="a context of 65: "):
        build_graph.decode(demo, 64)
    with pytest.raises(UsageError, match="a context of 0: "):
        build_graph.decode(demo, 0)
    with pytest.raises(UsageError, match="choose concat or static"):
        build_graph.decode(demo, 8, "paged")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="9 tokens do not fit into caches of 8"):
        build_graph.prefill(demo, 9, capacity=8)
    with pytest.raises(UsageError, match="a context of 65: "):
        build_graph.prefill(demo, 8, capacity=65)
    with pytest.raises(UsageError, match="a context of 0: "):
        build_graph.prefill(demo, 0, capacity=8)


WITHOUT_HEAD_DIM = {name: value for name, value in DEMO.items() if name != "head_dim"}
WITHOUT_HEAD_DIM["num_hidden_layers"] = 1


def test_key_heads_that_the_configuration_does_not_name(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, model_type="gpt_bigcode", **WITHOUT_HEAD_DIM)
    model = build_graph.decode(directory, 8, "static", "grouped")
    assert model.signatures[0].inputs["past_key_0"].shape.numpy() == (1, 1, 8, 4)  # type: ignore[union-attr]
    assert [node.op_type for node in model.graphs[0]].count("o2o.attention") == 1


def test_a_model_with_attention_of_its_own_is_exported_eager(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, model_type="bloom", **WITHOUT_HEAD_DIM)
    model = build_graph.decode(directory, 8, "static", "grouped")
    names = [node.op_type for node in model.graphs[0]]
    assert names.count("SOFTMAX") == 1
    assert "o2o.attention" not in names


def test_an_architecture_without_such_a_cache(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, model_type="mamba", **WITHOUT_HEAD_DIM)
    with pytest.raises(
        ModelError, match="this mamba model has state-space or other recurrent layers"
    ) as error:
        build_graph.decode(directory, 8)
    assert "\n" not in str(error.value)


def test_layers_that_pass_the_cache_by(demo: Path) -> None:
    model = LanguageModel.read(demo)
    model.layers = 5
    with pytest.raises(ModelError, match=r"^2 of the 5 layers of this llama model use a KV cache"):
        convert_to_circle(PrefillModule(model, 8))


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("one-layer"), **GROUPED | {"num_hidden_layers": 1})


@pytest.mark.parametrize("name", ["grouped", "flash", "flash:2,3"])
def test_attention_as_one_operator(shared_directory: Path, one_layer: Path, name: str) -> None:
    """It goes by positions: what eager attention computes, where tokens are in their places."""
    with compiled_once(shared_directory):
        eager = build_graph.prefill(one_layer, 4, capacity=9)
    model = build_graph.prefill(one_layer, 4, name, capacity=9)
    assert [n.op_type for n in model.graphs[0]].count("o2o.attention") == 1
    assert not {n.op_type for n in model.graphs[0]} & {"SOFTMAX", "BROADCAST_TO", "SELECT_V2"}
    run, expected = (
        graphs.interpreter(formats.dumps(lower_to_litert(m))).get_signature_runner() for m in (model, eager)
    )
    for position in (0, 3, 5):
        feeds = graphs.exported_feeds(eager, position)
        assert_close(run(**feeds)["logits"], expected(**feeds)["logits"])


def test_attention_as_one_operator_is_not_for_a_cache_that_is_joined(grouped: Path) -> None:
    with pytest.raises(UsageError, match="--cache static"):
        build_graph.decode(grouped, 8, "concat", "grouped")


@pytest.mark.parametrize("name", ["flash:", "flash:3", "flash:a,b", "flash:0,4"])
def test_blocks_that_cannot_be(one_layer: Path, name: str) -> None:
    if name == "flash:":
        build_graph.prefill(one_layer, 4, name, capacity=9)  # the usual ones
        return
    with pytest.raises(UsageError, match="block"):
        build_graph.prefill(one_layer, 4, name, capacity=9)
