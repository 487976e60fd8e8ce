"""A package's model as onert takes it: a Circle file of decode alone, in operators that it computes right."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime_py.model.contract import Contract


@contextmanager
def legalized(file: Path) -> Iterator[tuple[Path, Contract]]:
    """A file that onert takes, and its contract: `file` itself where `legalize.onert.py` made it, else one
    that is there for this block. Raises ModelError for a model that cannot be made one, OSError."""
    from o2o.contract import contract_of
    from o2o.formats import load, save
    from o2o.lower.onert import legalize
    from o2o.rewriting.topological_sort import topological_sort
    from runtime_py.engines.litert.lowered_file import understand

    model = load(file)
    understand(model, file)
    ready = bool(model.history) and model.history[-1].get("filter") == "legalize.onert.py"
    legalize(model)
    contract = Contract.parse_decode(contract_of(model))
    if ready:
        yield file, contract
        return
    folder = Path(tempfile.mkdtemp(prefix="o2o-onert-"))
    try:
        topological_sort(model.graphs[0])
        save(model, folder / "decode.circle")
        yield folder / "decode.circle", contract
    finally:
        shutil.rmtree(folder, ignore_errors=True)
