"""One graph is traced, and the others follow from it; a second checkpoint needs no trace at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from export.graph_groups import GraphGroup, graph_groups
from export.graph_specs import GraphSpec, graph_specs
from export.traced_graph import TracedGraph
from o2o import formats
from o2o.formats.tensors import constant_array
from o2o.rewriting import resize_tokens
from o2o.rewriting.matchers import fail
from tests.conftest import ROOT
from tests.export.traced_toys import trace_toy, write_toy
from tests.o2o.window_graphs import S


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("O2O_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The signatures that are traced, instead of torch.export and TICO."""
    names: list[str] = []

    def trace(self: GraphSpec, *_: object) -> TracedGraph:
        names.append(self.signature)
        return trace_toy(self.tokens, self.signature)

    monkeypatch.setattr(GraphSpec, "trace", trace)
    return names


def test_the_longest_graph_over_static_caches_is_traced() -> None:
    groups = graph_groups(graph_specs(300, [64, 128], "static"))
    assert [(g.traced.signature, [s.signature for s in g.derived]) for g in groups] == [
        ("prefill_128", ["prefill_64", "decode"])
    ]
    groups = graph_groups(graph_specs(300, [64, 128], "concat"))
    assert [(g.traced.signature, len(g.derived)) for g in groups] == [("prefill_128", 1), ("decode", 0)]
    groups = graph_groups(graph_specs(300, (), "static"))
    assert [g.traced.signature for g in groups] == ["decode", "prefill"]


def export(group: GraphGroup, directory: Path, folder: Path, strict: bool = False) -> list[str]:
    folder.mkdir(exist_ok=True)
    return group.export(directory, folder, "grouped", "embed", "float32", strict=strict)


def test_one_trace_for_all_lengths_and_all_checkpoints(tmp_path: Path, traces: list[str]) -> None:
    (group,) = graph_groups(graph_specs(S, [2, 6], "static"))
    first, second = (write_toy(tmp_path / f"checkpoint{seed}", seed, eos_token_id=seed) for seed in (0, 1))
    assert export(group, first, tmp_path / "a") == []
    assert traces == ["prefill_6"]
    for spec in group.specs:
        model = formats.load(tmp_path / "a" / spec.file)
        (signature,) = model.signatures
        assert (signature.name, resize_tokens.tokens_of(signature)) == (spec.signature, spec.tokens)
        expected = trace_toy(spec.tokens).model.graphs[0]
        assert [node.op_type for node in model.graphs[0]] == [node.op_type for node in expected]
    assert export(group, second, tmp_path / "b") == []
    assert traces == ["prefill_6"]
    heads = [formats.load(tmp_path / name / "decode.circle").graphs[0].initializers["head"] for name in "ab"]
    numbers = [constant_array(head) for head in heads]
    assert numbers[0] is not None
    assert numbers[1] is not None
    assert not np.array_equal(numbers[0], numbers[1])


def test_what_cannot_be_derived_is_traced(
    tmp_path: Path, traces: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resize_tokens, "prove_causal_tokens", lambda *_: fail("no proof"))
    (group,) = graph_groups(graph_specs(S, [2, 6], "static"))
    lines = export(group, write_toy(tmp_path / "checkpoint"), tmp_path / "a")
    assert traces == ["prefill_6", "prefill_2", "decode"]
    assert lines == [f"{name} is not derived from prefill_6: no proof" for name in ("prefill_2", "decode")]


WITHOUT_TORCH = """
import sys
from export.__main__ import main
code = main(sys.argv[1:])
assert not {"torch", "tico", "transformers"} & set(sys.modules)
sys.exit(code)
"""


def test_a_cached_export_does_not_import_torch(tmp_path: Path, traces: list[str]) -> None:
    specs = graph_specs(S, [2, 6], "static")
    (group,) = graph_groups(specs)
    checkpoint = write_toy(tmp_path / "checkpoint")
    export(group, checkpoint, tmp_path / "a")
    flags = [f"--max-length={S}", "--prefill-lengths=2,6", "--cache=static", "--weights=embed"]
    arguments = [checkpoint, "-o", tmp_path / "b", *flags, "--attn-implementation=grouped"]
    command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    for spec in specs:
        assert (tmp_path / "b" / spec.file).read_bytes() == (tmp_path / "a" / spec.file).read_bytes()
