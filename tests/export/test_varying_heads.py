"""A model whose layers differ in heads and head sizes, on all roads: Circle's ATTENTION, TFLite, ONNX."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from export.authoring.building_blocks import Decoder
from export.config import CheckpointConfig
from export.convert import main as convert
from export.hub import resolve
from export.loading_flags import MODEL_FILE, VARIABLES
from o2o import formats
from o2o.contract import role_of
from o2o.filters.bucket_kvcache import main as bucket
from o2o.filters.lower_litert import main as lower_litert
from o2o.filters.lower_onnx import main as lower_onnx
from o2o.filters.sign_ai_edge import main as sign_ai_edge
from o2o.model import shape_of
from o2o.roles import find_roles
from o2o.signatures import buckets_of, decode_of
from runtime_py.generation.session_pool import SessionPool
from runtime_py.package import Package
from tests.pipelines import in_process
from tinyllama.kv_cache import KVCache
from tinyllama.tiny_llama import build_model

CAPACITY = 24
HEADS = {"num_attention_heads": [4, 6, 4], "num_key_value_heads": [2, 1, 4], "head_dim": [16, 8, 8]}
"""Grouped-query attention, one key/value head for all, and one for each; the larger heads first."""
SHAPES = [(2, 16), (1, 8), (4, 8)]
MODEL = f"""
from export.authoring.building_blocks import Decoder as build_model
from export.authoring.config import ModelConfig

def get_model_config(fields):
    return ModelConfig(
        vocab_size=61, hidden_size=32, intermediate_size=[48, 64, 40], num_hidden_layers=3,
        max_position_embeddings=64, **{HEADS!r})
"""
IDS = np.random.default_rng(0).integers(1, 61, CAPACITY).tolist()


class GrowingCache:
    """The cache of the protocol, for one text."""

    def __init__(self) -> None:
        self.rows: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.rows[layer_idx] = key_states, value_states
        return self.rows[layer_idx]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The package with ATTENTION, its checkpoint, and the logits [S, V] of PyTorch."""
    folder = tmp_path_factory.mktemp("varying")
    (folder / "varying.py").write_text(MODEL)
    namespace: dict[str, Any] = {}
    exec(MODEL, namespace)
    torch.manual_seed(0)
    model: Decoder = namespace["build_model"](namespace["get_model_config"]({})).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    (folder / "checkpoint").mkdir()
    save_file(model.state_dict(), folder / "checkpoint" / "model.safetensors")
    positions = torch.arange(CAPACITY)
    mask = torch.where(positions[:, None] < positions, -torch.inf, 0.0)[None, None]
    with torch.no_grad():
        logits = model(torch.tensor([IDS]), positions[None], mask, GrowingCache())[0].numpy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("O2O_CACHE", str(folder / "cache"))
        patch.setenv(VARIABLES[MODEL_FILE], str(folder / "varying.py"))
        checkpoint = resolve(folder / "checkpoint", log=print)
        arguments = ["--cache", "concat", "--max-length", str(CAPACITY), "--prefill-lengths", "4"]
        package = folder / "package"
        with in_process():
            assert convert([str(folder / "checkpoint"), "-o", str(package), *arguments]) == 0
        yield SimpleNamespace(checkpoint=checkpoint, package=package, logits=logits, folder=folder)


def cache_shapes(file: Path) -> list[tuple[int, ...]]:
    """The keys of decode by layer."""
    values = decode_of(formats.load(file)).inputs.values()
    return [shape_of(value) for value in values if (role := role_of(value)) and role.kind == "key_cache"]


def assert_gives(file: Path, engine: str, expected: np.ndarray) -> None:
    """Two texts: the second copies rows of the first, and reads the rest in chunks and single tokens."""
    loaded = Package.load(file).engine(engine=engine, threads=1, disk_cache=None)
    with closing(SessionPool(loaded, 2)) as pool:
        owners = [GrowingCache(), GrowingCache()]  # any objects
        first = pool.claim(owners[0], IDS[:15])
        first.read(IDS[:15])
        caches = pool.claim(owners[1], IDS[:19])
        assert caches is not first
        logits = [caches.read(IDS[:19])]
        logits += [caches.append(token, position) for position, token in enumerate(IDS[19:], 19)]
    assert np.abs(np.stack(logits) - expected[18:]).max() / expected.std() < 1e-4


def test_attention_of_circle(own: SimpleNamespace) -> None:
    """--cache concat: fused, reshaped by two rows, transposed."""
    circle = own.package / "model.circle"
    assert cache_shapes(circle) == [(1, CAPACITY, K, H) for K, H in SHAPES]
    kinds = [node.op_type for graph in formats.load(circle).graphs for node in graph]
    assert kinds.count("ATTENTION") == 6
    for engine in ("litert", "onnx", "onert"):
        assert_gives(circle, engine, own.logits)


@pytest.fixture
def tflite(own: SimpleNamespace) -> Path:
    """The model with AI Edge's signatures and a bucket."""
    files = [
        own.package / "model.circle",
        *(own.folder / name for name in ("l.tflite", "s.tflite", "b.tflite")),
    ]
    steps = ((lower_litert, []), (sign_ai_edge, []), (bucket, ["--capacities", "8"]))
    for (main, arguments), source, target in zip(steps, files[:-1], files[1:], strict=True):
        assert main([*arguments, str(source), "-o", str(target)]) == 0
    return files[-1]


def test_signatures_of_ai_edge_and_buckets(own: SimpleNamespace, tflite: Path) -> None:
    assert cache_shapes(tflite) == [(1, CAPACITY, K, H) for K, H in SHAPES]
    (small,) = buckets_of(formats.load(tflite))
    assert shape_of(small.inputs["kv_cache_v_2"]) == (1, 8, 4, 8)
    assert_gives(tflite, "litert", own.logits)


def test_roles_are_those_of_the_contract(own: SimpleNamespace, tflite: Path) -> None:
    """Found by data flow: names say nothing."""
    for file in (own.package / "model.circle", tflite):
        model = formats.load(file)
        expected = {}
        for signature in model.signatures:
            for value in (*signature.inputs.values(), *signature.outputs.values()):
                expected[value] = value.meta.pop("role", None) or expected.get(value)
            signature.inputs = {f"x{i}": value for i, value in enumerate(signature.inputs.values())}
            signature.outputs = {f"y{i}": value for i, value in enumerate(signature.outputs.values())}
        found = {value: role for findings in find_roles(model) for value, role in findings.roles.items()}
        assert found == expected


@pytest.mark.parametrize("form", ["ort", "standard"])
def test_onnx(own: SimpleNamespace, tmp_path: Path, form: str) -> None:
    file = tmp_path / "model.onnx"
    assert lower_onnx(["--form", form, str(own.package / "model.circle"), "-o", str(file)]) == 0
    assert_gives(file, "onnx", own.logits)


def test_plan(own: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    """The heads of each layer, read from config.json alone."""
    config = CheckpointConfig.read(own.checkpoint)
    assert config.attention_layers == [(4, 2, 16), (6, 1, 8), (4, 4, 8)]
    assert (config.heads, config.kv_heads, config.head_dim) == (6, 4, 16)
    assert convert([str(own.folder / "checkpoint"), "-o", "package", "--dry-run"]) == 0
    plan = " ".join(capsys.readouterr().out.split())
    assert "grouped-query attention (4 to 6 query heads of 8 to 16 over 1 to 4)" in plan


def test_the_building_blocks_of_the_seed(own: SimpleNamespace) -> None:
    """`tinyllama.tiny_llama` has caches of each layer's own heads."""
    model = build_model(own.checkpoint, kv_cache_max_len=CAPACITY)
    cache = KVCache.from_model_config(model.config)
    assert [tuple(entry.v_cache.shape) for entry in cache.caches] == [
        (1, CAPACITY, *shape) for shape in SHAPES
    ]
    with torch.no_grad():
        logits = model(torch.tensor([IDS]))["logits"][0].numpy()
    assert np.abs(logits - own.logits).max() / own.logits.std() < 1e-4
