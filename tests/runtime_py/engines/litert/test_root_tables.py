"""Models of some signatures of a file."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from ai_edge_litert.compiled_model import CompiledModel

from o2o import formats
from runtime_py.engines.litert.compiled_model import compile_model
from runtime_py.engines.litert.lowered_file import LoweredFile, LoweringOptions, lower_file
from runtime_py.engines.model_file import ModelFile
from tests.o2o.window_graphs import T, window_model


@pytest.fixture(scope="module")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoweredFile, Path]:
    """A model with composites: subgraphs that no signature has."""
    file = tmp_path_factory.mktemp("roots") / "model.circle"
    formats.save(window_model(None, [2 * T, T, 1], (0, 0)), file)
    return lower_file(ModelFile(file), LoweringOptions([16])), file


def test_any_signatures_make_a_model(lowered):
    lowered_file, file = lowered
    opened = lowered_file.open(file)
    names = [*lowered_file.contract["signatures"]]
    assert len(names) == 6
    models: list[CompiledModel] = []  # the earlier ones stay in use
    for place, chosen in enumerate([names[:1], names[1:3], names[3:], names]):
        lowered_file.roots.select(chosen, place, opened)
        models.append(compile_model(opened, None, 1))
        assert [*models[-1].get_signature_list()] == chosen
    for model, other in itertools.pairwise(models):
        assert model.get_signature_list() != other.get_signature_list()
    for model in models:
        model.close()
    opened.close()
