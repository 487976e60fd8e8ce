"""A table of names: each kind of source gives the right numbers, and what does not fit is named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from export.authoring.tensor_names import (
    TensorNames,
    apply,
    blocks,
    joined,
    rows,
    shifted,
    stacked,
    transposed,
)
from o2o.errors import ModelError
from o2o.weights.derived_checkpoint import read_index, write_index
from o2o.weights.safetensors import read_header

STORED = {
    "emb": np.arange(12).reshape(4, 3),
    "h.0.qkv": np.arange(100, 130).reshape(10, 3),
    "h.1.qkv": np.arange(200, 230).reshape(10, 3),
    "h.0.q": np.arange(8).reshape(4, 2),
    "h.0.k": np.arange(50, 54).reshape(2, 2),
    "norms": np.arange(6).reshape(2, 3),
    "gates": np.arange(24).reshape(2, 4, 3),
    "w_in": np.arange(6).reshape(2, 3),
}


@pytest.fixture
def stored(tmp_path: Path) -> dict:
    numbers = {name: array.astype(np.float32) for name, array in STORED.items()}
    save_file(numbers, tmp_path / "model.safetensors")
    return read_header(tmp_path / "model.safetensors")


def mapped(
    stored: Mapping, names: TensorNames, shapes: Mapping[str, Sequence[int]], tmp_path: Path, **aliases: list
) -> dict[str, np.ndarray]:
    """The numbers of each parameter, through the file of a derived checkpoint."""
    expressions, _ = apply(names, shapes, aliases, stored)
    write_index(tmp_path / "derived_weights.json", expressions)
    return {name: one.read_float32() for name, one in read_index(tmp_path / "derived_weights.json").items()}


def equal(actual: np.ndarray, expected: np.ndarray) -> bool:
    return actual.shape == expected.shape and bool((actual == expected).all())


def test_all_kinds_of_sources(stored: dict, tmp_path: Path) -> None:
    names = {
        "embedding": "emb",
        "layers.{layer}.q": rows("h.{layer}.qkv", 0, 4),
        "layers.{layer}.k": rows("h.{layer}.qkv", lambda layer: 4 + layer, 7),
        "layers.{layer}.norm": stacked("norms"),
        "layers.{layer}.gate": stacked("gates"),
        "layers.{layer}.gate_t": transposed(stacked("gates")),
        "layers.{layer}.part": rows(stacked("gates"), 1, 3),
        "fused": joined("h.0.q", "h.0.k", rows("h.0.q", 3, 4)),
        "up": transposed("w_in"),
        "every_second": blocks("h.0.qkv", 1, 5, 1),
        "norm": shifted("emb", 1),
    }
    layer = {"q": [4, 3], "norm": [3], "gate": [4, 3], "gate_t": [3, 4], "part": [2, 3]}
    shapes = {f"layers.{i}.{name}": shape for i in (0, 1) for name, shape in layer.items()}
    shapes |= {"embedding": [4, 3], "layers.0.k": [3, 3], "layers.1.k": [2, 3], "fused": [7, 2], "up": [3, 2]}
    shapes |= {"every_second": [2, 3], "norm": [4, 3], "w_in": [2, 3]}
    given = mapped(stored, names, shapes, tmp_path)
    expected = {
        "embedding": STORED["emb"],
        "layers.1.q": STORED["h.1.qkv"][:4],
        "layers.0.k": STORED["h.0.qkv"][4:7],
        "layers.1.k": STORED["h.1.qkv"][5:7],
        "layers.1.norm": STORED["norms"][1],
        "layers.1.gate": STORED["gates"][1],
        "layers.1.gate_t": STORED["gates"][1].T,
        "layers.1.part": STORED["gates"][1, 1:3],
        "fused": np.concatenate([STORED["h.0.q"], STORED["h.0.k"], STORED["h.0.q"][3:]]),
        "up": STORED["w_in"].T,
        "every_second": STORED["h.0.qkv"][1::5],
        "norm": STORED["emb"] + 1,
        "w_in": STORED["w_in"],  # by its own name
    }
    assert [name for name, numbers in expected.items() if not equal(given[name], numbers)] == []
    assert set(given) == set(shapes)


def test_heads_that_are_fused_one_by_one(stored: dict, tmp_path: Path) -> None:
    """[heads, (query, key), 2 rows]: the first two heads of ten rows are not a whole number of groups."""
    given = mapped(stored, {"k": blocks(rows("h.0.qkv", 0, 8), 1, 2, 2)}, {"k": [4, 3]}, tmp_path)
    assert equal(given["k"], STORED["h.0.qkv"][[2, 3, 6, 7]])
    with pytest.raises(ModelError, match="10 rows are not groups of 2 blocks of 2 rows"):
        apply({"k": blocks("h.0.qkv", 1, 2, 2)}, {"k": [4, 3]}, {}, stored)


def test_a_tied_parameter_has_a_source_under_any_name(stored: dict, tmp_path: Path) -> None:
    for table in ({"embedding": "emb"}, {"head": "emb"}):
        given = mapped(stored, table, {"embedding": [4, 3]}, tmp_path, embedding=["head"])
        assert equal(given["embedding"], STORED["emb"])


def test_what_the_model_does_not_use(stored: dict) -> None:
    _, surplus = apply({"x": "emb"}, {"x": [4, 3]}, {}, stored)
    assert set(surplus) == set(STORED) - {"emb"}


@pytest.mark.parametrize(
    ("names", "shapes", "message"),
    [
        ({"x": "norm"}, {"x": [2, 3]}, "no tensor for x ('norm' is not stored, the nearest name is 'norms')"),
        ({}, {"h.2.qkv": [1]}, "'h.2.qkv' is not stored, the nearest name is 'h.1.qkv'"),
        ({"x": "emb"}, {"x": [3, 4]}, "x is [3, 4], its source [4, 3]"),
        ({"y.{layer}.weights": "emb"}, {"y.0.weight": [4, 3]}, "no parameter y.{layer}.weights (the nearest"),
        ({"x": rows("emb", 2, 9)}, {"x": [7, 3]}, "x: rows 2 to 9 of emb do not exist: it has 4 rows"),
        ({"x": joined("emb", "h.0.q")}, {"x": [8, 3]}, "x: tensors of shapes [4, 3], [4, 2] cannot be"),
        ({"x": transposed("gates")}, {"x": [3]}, "cannot be transposed"),
        ({"l.{layer}": stacked("norms")}, {"l.2": [3]}, "holds no layer 2"),
    ],
)
def test_messages(stored: dict, names: TensorNames, shapes: dict[str, Sequence[int]], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        apply(names, shapes, {}, stored)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
