"""Preparation of a model for onert: a Circle file with decode only, in operators that onert supports."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from o2o.streams.temporary import temporary_folder
from runtime_py.engines.model_file import ModelFile
from runtime_py.engines.options import EngineOptions
from runtime_py.model.contract import Contract


@dataclass(frozen=True)
class PreparedModel:
    """What onert loads: `file`, made from `model` or that file itself, and its contract."""

    model: ModelFile
    file: Path
    contract: Contract


@contextlib.contextmanager
def prepare(model: ModelFile, options: EngineOptions) -> Iterator[PreparedModel]:
    """Legalize a model for onert.

    Args:
        model: A Circle file. If legalization changes nothing, the file itself is used.
        options: None is used.

    Yields:
        The prepared model, which may be loaded within the block.

    Raises:
        ModelError: onert cannot run the model.
        OSError: A file cannot be read or written.
    """
    from o2o.contract import contract_of
    from o2o.formats import save
    from o2o.formats.fingerprint import fingerprint
    from o2o.lower.onert import lower_to_onert
    from o2o.rewriting.topological_sort import topological_sort

    graphs, _ = model.read()
    before = fingerprint(graphs)
    lower_to_onert(graphs)
    contract = Contract.parse_decode(contract_of(graphs)).require_plain_inputs()
    if fingerprint(graphs) == before:
        yield PreparedModel(model, model.path, contract)
        return
    with temporary_folder(prefix="o2o-onert-") as folder:
        file = folder / "decode.circle"
        topological_sort(graphs.graphs[0])
        save(graphs, file)
        yield PreparedModel(model, file, contract)
