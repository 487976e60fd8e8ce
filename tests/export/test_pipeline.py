"""Weights that are embedded on export and weights that are bound later give the same package, byte for byte.

The guide's filters, and those of a package with several prefills, on checkpoints in every form.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from export import build_graph
from o2o import filters, formats
from o2o.formats.tensors import LARGE, storage_key
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import Model
from tests.checkpoints import DEMO, GROUPED, write_checkpoint
from tests.compiled import compiled_once

# Norms of 4 KiB, which are large; and small matrices.
WIDE = DEMO | {
    "hidden_size": 1024,
    "num_hidden_layers": 1,
    "vocab_size": 64,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}

UNTIED = DEMO | {"num_hidden_layers": 1}
TIED = GROUPED | {"num_hidden_layers": 2}  # equal layers are two at least

CHECKPOINTS: dict[str, dict[str, Any]] = {
    "demo": UNTIED,
    "demo, bf16 in shards": UNTIED | {"dtype": "bfloat16", "shards": 3},
    "tied": TIED,
    "tied, bf16 .bin": TIED | {"dtype": "bfloat16", "format": "bin"},
    "wide, norms of ones": WIDE,
    "tied, equal layers": TIED,
}

CAPACITY = 24


def made(folder: Path, name: str) -> Path:
    """The checkpoint of that name."""
    write_checkpoint(folder, **CHECKPOINTS[name])
    if "ones" in name or "equal" in name:
        tensors = load_file(folder / "model.safetensors")
        for key, tensor in tensors.items():
            if "norm" in key:
                tensors[key] = torch.ones_like(tensor)
            elif "equal" in name and ".layers." in key:
                tensors[key] = tensors[f"model.layers.0.{key.split('.', 3)[3]}"].clone()
        save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture
def compiled(shared_directory: Path) -> Iterator[None]:
    with compiled_once(shared_directory):
        yield


class Build:
    """Commands in a folder; `bind` names the steps at which weights are bound.

    `results` maps each export, and each filter on the same bytes, to the file that it wrote.
    """

    def __init__(self, folder: Path, bind: Sequence[str], results: dict[tuple[Any, ...], Path]) -> None:
        folder.mkdir()
        self.folder, self.bind, self.results = folder, bind, results

    def pipe(self, files: Sequence[str], steps: Sequence[Sequence[str]], target: str) -> None:
        """Run the filters `steps` (module, arguments...) on `files`, one after the other, into `target`."""
        paths = [self.folder / file for file in files]
        for name, *arguments in steps:
            command = (name, *arguments, *(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths))
            if command not in self.results:
                output = self.folder / f"step-{len(self.results)}"
                assert filters.load(name).main([*arguments, *map(str, paths), "-o", str(output)]) == 0
                self.results[command] = output
            paths = [self.results[command]]
        shutil.copyfile(paths[0], self.folder / target)

    def export(self, target: str, export: Callable[..., Model], *arguments: Any, **options: Any) -> None:
        """Save what `export` (of `export.build_graph`) returns for these arguments as `target`."""
        call = (export.__name__, *arguments, *sorted(options.items()))
        if call not in self.results:
            self.results[call] = self.folder / f"export-{len(self.results)}"
            formats.save(export(*arguments, **options), self.results[call])
        shutil.copyfile(self.results[call], self.folder / target)

    def maybe_bind(self, step: str, *files: str) -> None:
        if step in self.bind:
            for file in files:
                self.pipe([file], [["bind_weights"]], file)

    def merge(self, files: Sequence[str]) -> bytes:
        self.pipe(files, [["merge_circles"]], "model.circle")
        self.maybe_bind("merged", "model.circle")
        steps = [["fuse_bmm_lhs_const"], ["downcast_input_ids"], ["gc"]]
        self.pipe(["model.circle"], steps, "model.circle")
        self.maybe_bind("at the end", "model.circle")
        return (self.folder / "model.circle").read_bytes()


def guide(build: Build, checkpoint: Path, weights: Any, dtype: Any = "float32") -> bytes:
    """The guide: a prefill of 32 tokens, and decode after 30 others, which becomes one after 32."""
    options = {"weights": weights, "dtype": dtype}
    build.export("prefill.circle", build_graph.prefill, checkpoint, **options)
    build.export("decode_.circle", build_graph.decode, checkpoint, **options)
    build.maybe_bind("exported", "prefill.circle", "decode_.circle")
    _fuse_decode(build, 32)
    return build.merge(["prefill.circle", "decode.circle"])


def halved(build: Build, checkpoint: Path, weights: Any) -> bytes:
    """The guide with matrices of half the size."""
    return guide(build, checkpoint, weights, "float16")


def pieces(build: Build, checkpoint: Path, weights: Any) -> bytes:
    """Prefills of 4 and 8 tokens onto caches of 24, and decode."""
    lengths = (4, 8)
    for tokens in lengths:
        options = {"capacity": CAPACITY, "weights": weights}
        build.export(f"prefill_{tokens}_.circle", build_graph.prefill, checkpoint, tokens, **options)
    build.export("decode_.circle", build_graph.decode, checkpoint, CAPACITY - 2, weights=weights)
    files = [f"prefill_{tokens}.circle" for tokens in lengths]
    raw = [file.replace(".circle", "_.circle") for file in files]
    build.maybe_bind("exported", *raw, "decode_.circle")
    for source, target in zip(raw, files, strict=True):
        build.pipe([source], [["fuse_attention"], ["transpose_io_kvcache"]], target)
    _fuse_decode(build, CAPACITY)
    return build.merge([*files, "decode.circle"])


def _fuse_decode(build: Build, capacity: int) -> None:
    inputs = formats.load(build.folder / "decode_.circle").signatures[0].inputs
    _, heads, _, size = inputs["past_key_0"].shape.numpy()  # type: ignore[union-attr]
    shapes = [f"[1,{heads},{rows},{size}]" for rows in (capacity - 2, capacity)]
    steps = [["fuse_attention"], ["reshape_io", "input", "--by_shape", *shapes], ["transpose_io_kvcache"]]
    build.pipe(["decode_.circle"], steps, "decode.circle")
    build.maybe_bind("fused", "decode.circle")


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    ("make", "name"),
    [
        *((guide, name) for name in CHECKPOINTS),
        (pieces, "tied"),
        (pieces, "demo, bf16 in shards"),
        (halved, "tied"),
        (halved, "wide, norms of ones"),
    ],
    ids=lambda item: item if isinstance(item, str) else item.__name__,
)
def test_early_and_late_binding_give_the_same_file(make: Any, name: str, tmp_path: Path) -> None:
    checkpoint = made(tmp_path / "checkpoint", name)
    results: dict[tuple[Any, ...], Path] = {}
    expected = make(Build(tmp_path / "embedded", [], results), checkpoint, "embed")

    builds = {
        "late": ["at the end"],
        "between": ["merged"],
        "early": ["exported"],
        "mixed": ["fused", "merged"],
    }
    for build, bind in builds.items():
        folder = tmp_path / build
        assert make(Build(folder, bind, results), checkpoint, "external") == expected, build
    light = sorted((tmp_path / "late").glob("*_.circle"))
    assert light
    for file in light:
        kinds = {type(v.const_value) for v in formats.load(file).graphs[0].initializers.values()}
        assert UnboundTensor in kinds, "else there is nothing to compare"


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("name", ["wide, norms of ones", "tied, equal layers"])
def test_equal_weights_are_there_once(name: str, tmp_path: Path) -> None:
    checkpoint = made(tmp_path / "checkpoint", name)
    model = formats.loads(guide(Build(tmp_path / "late", ["at the end"], {}), checkpoint, "external"))
    large = [
        value.const_value
        for graph in model.graphs
        for value in graph.initializers.values()
        if value.const_value is not None and value.const_value.nbytes >= LARGE
    ]
    assert len({storage_key(tensor) for tensor in large}) == len({tensor.tobytes() for tensor in large})
    assert len({storage_key(tensor) for tensor in large}) < len(large) / 2
