"""Attention in torch, all scores at a time and in blocks: alone, as an operator, and in models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AutoModelForCausalLM

import export.attention  # noqa: F401  (registers `grouped` and `blocked`)
from export.attention import blocks_of, queries_at
from export.custom_ops import core_attention
from export.flash_attention import attend
from o2o.errors import ModelError
from o2o.operators import reference
from o2o.operators.core_attention import FlashBlockSizes, adaptive_blocks
from tests.checkpoints import GROUPED, write_checkpoint
from tests.tolerances import assert_close


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Work this small gains nothing from threads, and loses much where the cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def expected(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, position: int, scale: float) -> torch.Tensor:
    """As torch has it, with keys and values repeated for the query heads that share them."""
    T, S = q.shape[2], k.shape[2]
    seen = torch.arange(S) <= position + torch.arange(T)[:, None]
    result = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=seen, scale=scale, enable_gqa=True
    )
    return result.transpose(1, 2)


def rounding(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, **_: Any) -> float:
    """How far float32 may take a result: scores are rounded before exp, which makes that relative."""
    groups = q.shape[1] // k.shape[1]
    scores = scale * (q @ k.repeat_interleave(groups, 1).transpose(-1, -2)).abs().max()
    return 4 * torch.finfo(torch.float32).eps * float((8 + scores) * v.abs().max())


@st.composite
def cases(draw: Callable[..., Any]) -> dict[str, Any]:
    """Queries, keys and values; T queries at any position of S rows; blocks that divide nothing evenly."""
    heads, groups, size = (draw(st.integers(1, 4)) for _ in range(3))
    capacity = draw(st.integers(1, 40))
    tokens = draw(st.integers(1, capacity))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    loud = draw(st.sampled_from([1.0, 30.0]))  # scores of hundreds: exp would overflow

    def drawn(count: int, length: int) -> torch.Tensor:
        return torch.randn(1, count, length, size, generator=generator) * loud

    return {
        "q": drawn(heads * groups, tokens),
        "k": drawn(heads, capacity),
        "v": drawn(heads, capacity),
        "position": draw(st.integers(0, capacity - tokens)),
        "scale": draw(st.sampled_from([size**-0.5, 1.0])),
    }


BLOCKS = {"q_block": st.integers(1, 48), "kv_block": st.integers(1, 48)}


@settings(max_examples=150, deadline=None)
@given(case=cases(), **BLOCKS)
def test_blocks_give_what_torch_gives(case: dict[str, Any], q_block: int, kv_block: int) -> None:
    wanted = expected(**case)

    result = attend(**case, q_block=q_block, kv_block=kv_block)

    assert result.shape == wanted.shape
    torch.testing.assert_close(result, wanted, rtol=0, atol=rounding(**case))


@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_all_at_a_time_gives_what_torch_gives(case: dict[str, Any]) -> None:
    torch.testing.assert_close(attend(**case), expected(**case), rtol=0, atol=rounding(**case))


@settings(max_examples=50, deadline=None)
@given(case=cases(), **BLOCKS)
def test_what_is_hidden_is_not_seen(case: dict[str, Any], q_block: int, kv_block: int) -> None:
    """Rows of the cache behind the last query may hold anything."""
    behind = case["position"] + case["q"].shape[2]
    other = {name: case[name].clone() for name in ("k", "v")}
    for tensor in other.values():
        tensor[:, :, behind:] = 1e30

    one, two = (attend(**tensors, q_block=q_block, kv_block=kv_block) for tensors in (case, case | other))

    torch.testing.assert_close(one, two, rtol=0, atol=0)


class Matmuls(TorchDispatchMode):
    """Counts the products, and the largest number of scores that exist at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.bmm.default, torch.ops.aten.mm.default):
            self.shapes.append(tuple(result.shape[-2:]))
        return result


@settings(max_examples=80, deadline=None)
@given(case=cases(), **BLOCKS)
def test_no_block_is_computed_that_the_mask_empties(
    case: dict[str, Any], q_block: int, kv_block: int
) -> None:
    T, S, position = case["q"].shape[2], case["k"].shape[2], case["position"]
    needed = sum(
        any(key <= position + query for query in range(first, min(first + q_block, T)))
        for first in range(0, T, q_block)
        for key in range(0, S, kv_block)  # a block's first key is the one that is seen soonest
    )
    with Matmuls() as counted:
        attend(**case, q_block=q_block, kv_block=kv_block)

    assert len(counted.shapes) == 2 * needed  # scores, then values


def test_never_more_scores_than_a_block() -> None:
    q, k, v = (torch.randn(1, heads, 256, 4) for heads in (8, 2, 2))
    with Matmuls() as counted:
        attend(q, k, v, 0, 0.5, 32, 64)

    assert max(rows for rows, _ in counted.shapes) <= 32 * 4  # four query heads share their keys
    assert max(columns for _, columns in counted.shapes) <= 64


def test_a_position_is_absolute() -> None:
    """Decode at position 26 sees 27 keys: a query that stands at 0 would see one."""
    q, k, v = torch.randn(1, 2, 1, 4), torch.randn(1, 2, 64, 4), torch.randn(1, 2, 64, 4)

    result = attend(q, k, v, 26, 0.5, 32, 8)

    torch.testing.assert_close(result, expected(q, k, v, 26, 0.5))
    assert (result - attend(q, k, v, 0, 0.5, 32, 8)).abs().max() > 0.1


@pytest.mark.parametrize(("tokens", "q_block"), [(1, 32), (191, 32), (192, 64), (767, 64), (768, 256)])
def test_adaptive_blocks(tokens: int, q_block: int) -> None:
    assert adaptive_blocks(tokens) == FlashBlockSizes(q_block, 512)


@pytest.mark.parametrize(("q_block", "kv_block"), [(0, 0), (2, 4)])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_is_a_proper_operator(q_block: int, kv_block: int, dtype: torch.dtype) -> None:
    q, k, v = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8)
    arguments = q, k, v, torch.tensor([5], dtype=dtype), 0.3, None, None, None, 0.0, 0, q_block, kv_block

    torch.library.opcheck(core_attention, arguments, test_utils=("test_schema", "test_faketensor"))
    torch.testing.assert_close(core_attention(*arguments), expected(q, k, v, 5, 0.3))


def test_exports_as_one_operator() -> None:
    class Attention(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
            return core_attention(q, k, k, position, 0.5, q_block=2, kv_block=4)

    arguments = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 9, 8), torch.tensor([2])
    program = torch.export.export(Attention(), arguments, strict=False)

    called = [node for node in program.graph.nodes if node.op == "call_function"]
    assert [node.target for node in called] == [torch.ops.o2o.attention.default]
    torch.testing.assert_close(program.module()(*arguments), Attention()(*arguments))


# In transformers' models, which know nothing of it.

MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"use_sliding_window": False},  # biases
    "mistral": {"sliding_window": None},
    "qwen3": {},  # norms of queries and keys
    "gemma": {"head_dim": 16},  # embeddings scaled
    "phi3": {"pad_token_id": 0, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
}


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """(model_type, attn_implementation, fields of config.json) -> a random model."""
    folders: dict[str, Path] = {}

    def load(model_type: str, attn_implementation: str, **config: Any) -> Any:
        key = f"{model_type} {config}"
        if key not in folders:
            settings = {**GROUPED, **MODELS.get(model_type, {}), **config}
            folders[key] = write_checkpoint(
                tmp_path_factory.mktemp("model"), model_type=model_type, **settings
            )
        return AutoModelForCausalLM.from_pretrained(
            folders[key], dtype=torch.float32, attn_implementation=attn_implementation
        ).eval()

    return load


PROMPT = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7]])


@pytest.mark.parametrize("name", ["grouped", "blocked"])
@pytest.mark.parametrize("model_type", MODELS)
def test_a_model_generates_the_same(model_of: Callable[..., Any], model_type: str, name: str) -> None:
    eager, other = (model_of(model_type, attention) for attention in ("eager", name))
    how: dict[str, Any] = {
        "max_new_tokens": 20,
        "min_new_tokens": 20,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    wanted = eager.generate(PROMPT, **how)
    with blocks_of(FlashBlockSizes(4, 8)):
        found = other.generate(PROMPT, **how)

    assert found.sequences.tolist() == wanted.sequences.tolist()
    for one, two in zip(found.logits, wanted.logits, strict=True):
        assert_close(one, two)


@torch.no_grad()
def test_every_logit_of_a_prompt(model_of: Callable[..., Any]) -> None:
    eager, flash = (model_of("llama", attention) for attention in ("eager", "blocked"))
    ids = torch.randint(0, GROUPED["vocab_size"], (1, 60), generator=torch.Generator().manual_seed(0))

    for blocks in (None, FlashBlockSizes(1, 1), FlashBlockSizes(7, 5), FlashBlockSizes(64, 64)):
        with blocks_of(blocks):
            assert_close(flash(ids).logits, eager(ids).logits)


@torch.no_grad()
def test_blocks_are_those_that_were_asked_for(
    model_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []

    def spy(q: torch.Tensor, *args: Any, **optional: Any) -> torch.Tensor:
        used.append(args[-2:])
        return attend(q, *args, **optional)

    monkeypatch.setattr("export.custom_ops.attend", spy)
    model = model_of("llama", "blocked")
    model(PROMPT)
    with blocks_of(FlashBlockSizes(3, 5)):
        model(PROMPT)

    layers = GROUPED["num_hidden_layers"]
    assert used == [(32, 512)] * layers + [(3, 5)] * layers


@torch.no_grad()
def test_a_wrong_position_is_another_text(model_of: Callable[..., Any]) -> None:
    """What the other tests would see of relative positions: a decode that sees one key."""
    model = model_of("llama", "blocked")
    cache = model(PROMPT, use_cache=True).past_key_values
    right = model(torch.tensor([[7]]), past_key_values=cache).logits
    cache = model(PROMPT, use_cache=True).past_key_values
    with queries_at(torch.tensor([0])):
        wrong = model(torch.tensor([[7]]), past_key_values=cache).logits

    assert (right - wrong).abs().max() > 0.1


# What it does not compute is refused.


@torch.no_grad()
@pytest.mark.parametrize("name", ["grouped", "blocked"])
def test_padded_prompts_are_refused(model_of: Callable[..., Any], name: str) -> None:
    mask = torch.ones_like(PROMPT)
    mask[0, :3] = 0
    model = model_of("llama", name)

    with pytest.raises(ModelError, match="the prompt is padded: use eager attention"):
        model.generate(PROMPT, attention_mask=mask, max_new_tokens=2, do_sample=False)


@torch.no_grad()
def test_a_mask_that_hides_nothing_is_fine(model_of: Callable[..., Any]) -> None:
    model = model_of("llama", "blocked")

    logits = model(PROMPT, attention_mask=torch.ones_like(PROMPT)).logits

    torch.testing.assert_close(logits, model(PROMPT).logits, rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["grouped", "blocked"])
@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("mistral", {"sliding_window": 5}),
        ("gemma2", {"head_dim": 10, "query_pre_attn_scalar": 7, "sliding_window": 6}),  # and soft-capped
        ("granite", {"attention_multiplier": 0.3}),
    ],
)
def test_what_families_add(
    model_of: Callable[..., Any], model_type: str, config: dict[str, Any], name: str
) -> None:
    eager, other = (model_of(model_type, attention, **config) for attention in ("eager", name))
    with blocks_of(FlashBlockSizes(3, 4)):
        assert_close(other(PROMPT).logits, eager(PROMPT).logits)


class Layer(torch.nn.Module):
    """A layer of some model."""


def drawn(N: int = 4, K: int = 2, T: int = 5, S: int = 9, H: int = 8) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    return tuple(
        torch.randn(1, heads, rows, H, generator=generator) for heads, rows in ((N, T), (K, S), (K, S))
    )


@pytest.mark.parametrize("name", ["grouped", "blocked"])
def test_sinks_are_those_of_transformers(name: str) -> None:
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

    q, k, v = drawn()
    layer = Layer()
    layer.sinks, layer.num_key_value_groups = torch.tensor([0.5, 3.0, -2.0, 9.0]), 2  # type: ignore[assignment]
    mask = torch.full((5, 9), torch.finfo(torch.float32).min).triu(5)[None, None]
    wanted, _ = eager_attention_forward(layer, q, k, v, mask, 0.3)
    with queries_at(torch.tensor([4]), mask), blocks_of(FlashBlockSizes(2, 4)):
        result, _ = AttentionInterface()[name](layer, q, k, v, mask, scaling=0.3, s_aux=layer.sinks)
    torch.testing.assert_close(result, wanted)


def test_another_mask_is_an_operand() -> None:
    q, k, v = drawn()
    mask = torch.randn(1, 4, 5, 9)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    for blocks in (None, FlashBlockSizes(2, 4)):
        with blocks_of(blocks):
            result, _ = AttentionInterface()["blocked"](Layer(), q, k, v, mask)
        torch.testing.assert_close(result, wanted.transpose(1, 2))
    with queries_at(torch.tensor([4]), torch.zeros(1, 1, 5, 9)):
        result, _ = AttentionInterface()["grouped"](Layer(), q, k, v, mask[:, :1] < 0)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask[:, :1] < 0, enable_gqa=True)
    torch.testing.assert_close(result, wanted.transpose(1, 2))


def test_a_position_bias_is_added_to_the_mask() -> None:
    q, k, v = drawn()
    bias = torch.randn(1, 4, 5, 9)
    mask = torch.full((5, 9), torch.finfo(torch.float32).min).triu(5)[None, None]
    with queries_at(torch.tensor([4]), mask):
        result, _ = AttentionInterface()["grouped"](Layer(), q, k, v, mask, position_bias=bias)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask + bias, enable_gqa=True)
    torch.testing.assert_close(result, wanted.transpose(1, 2))
    with pytest.raises(ModelError, match="Layer adds a position bias"):
        AttentionInterface()["grouped"](Layer(), q, k, v, None, position_bias=bias)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"block_indices": torch.zeros(1)}, "Layer passes block_indices to attention"),
        ({"is_causal": False}, "Layer is not causal"),
    ],
)
def test_unknown_arguments_are_refused(arguments: dict[str, Any], complaint: str) -> None:
    q, k, v = drawn()
    with pytest.raises(ModelError, match=complaint):
        AttentionInterface()["grouped"](Layer(), q, k, v, None, **arguments)


def test_values_of_another_size_are_refused() -> None:
    q, k, v = drawn()
    with pytest.raises(ModelError, match="keys of size 8 and values of size 4"):
        AttentionInterface()["grouped"](Layer(), q, k, v[..., :4], None)


EXTRAS = {
    "softcap": {"softcap": 2.0},
    "window": {"window": 3},
    "slopes": {"slopes": torch.tensor([0.5, 0.25, 0.125, 1.0])},
    "sinks": {"sinks": torch.tensor([0.5, 3.0, -2.0, 9.0])},
    "mask": {"mask": torch.randn(1, 1, 5, 9)},
}


@pytest.mark.parametrize(("q_block", "kv_block"), [(0, 0), (2, 4), (1, 1), (5, 3)])
@pytest.mark.parametrize("extras", [*([name] for name in EXTRAS), ["softcap", "window", "slopes", "sinks"]])
def test_is_the_reference(extras: list[str], q_block: int, kv_block: int) -> None:
    q, k, v = drawn()
    optional: dict[str, Any] = {name: value for extra in extras for name, value in EXTRAS[extra].items()}
    wanted = reference.core_attention(
        *(x.double().numpy() for x in (q, k, v)),
        position=4,
        scale=0.3,
        **{name: value.numpy() if hasattr(value, "numpy") else value for name, value in optional.items()},
    )
    assert_close(attend(q, k, v, 4, 0.3, q_block, kv_block, **optional), wanted)
