"""Models on onert, in a process of their own: on some files it ends the process.

    first, second = run_all([(model, feeds), (other, feeds)])     # arrays by name, or what onert says

One process runs all models. When it dies, another one continues with the next model.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from o2o import formats
from o2o.model import Model

pytest.importorskip("onert", reason="pip install onert==0.1.0")

Feeds = Mapping[str, np.ndarray]
CRASHED = "crashed"


def run(model: Model, feeds: Feeds) -> dict[str, np.ndarray]:
    """The outputs of the first graph of `model` by name. Fails where onert does not run it."""
    (result,) = run_all([(model, feeds)])
    assert not isinstance(result, str), result
    return result


def run_all(cases: Sequence[tuple[Model | bytes, Feeds]]) -> list[dict[str, np.ndarray] | str]:
    """For each (model, feeds) the outputs by name (by number for bytes), or why there are none."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index, (model, feeds) in enumerate(cases):
            data = model if isinstance(model, bytes) else formats.dumps(model)
            (folder / f"{index}.circle").write_bytes(data)
            names = (
                list(feeds) if isinstance(model, bytes) else [v.name or "" for v in model.graphs[0].inputs]
            )
            np.savez(folder / f"{index}.feeds.npz", *(feeds[name] for name in names))
        done = 0
        while done < len(cases):
            command = [sys.executable, "-m", __spec__.name, str(folder), str(done), str(len(cases))]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            subprocess.run(command, env=environment, capture_output=True, check=False, timeout=120)
            while (folder / f"{done}.txt").exists() or (folder / f"{done}.npz").exists():
                done += 1
            if done < len(cases):
                (folder / f"{done}.txt").write_text(CRASHED)
                done += 1
        return [_result(folder, index, model) for index, (model, _) in enumerate(cases)]


def _result(folder: Path, index: int, model: Model | bytes) -> dict[str, np.ndarray] | str:
    if (output := folder / f"{index}.txt").exists():
        return output.read_text()
    with np.load(folder / f"{index}.npz") as found:
        arrays = [found[key] for key in found.files]
    if isinstance(model, bytes):
        return {str(number): array for number, array in enumerate(arrays)}
    outputs = model.graphs[0].outputs
    return {value.name or "": array for value, array in zip(outputs, arrays, strict=True)}


def _main(folder: Path, first: int, stop: int) -> None:
    from onert.native.libnnfw_api_pybind import infer, prepare_config
    from onert.native.libnnfw_api_pybind.exception import OnertError

    for index in range(first, stop):
        with np.load(folder / f"{index}.feeds.npz") as stored:
            feeds = [np.ascontiguousarray(stored[key]) for key in stored.files]
        try:
            session = infer.nnfw_session(str(folder / f"{index}.circle"), "cpu")
            session.set_prepare_config(prepare_config.ENABLE_INTERNAL_OUTPUT_ALLOC)
            session.prepare()
            for number, array in enumerate(feeds):
                session.set_input(number, array)
            session.run()
            outputs = [session.get_output(number) for number in range(session.output_size())]
        except (OnertError, ValueError, RuntimeError) as error:
            (folder / f"{index}.txt").write_text(f"{type(error).__name__}: {error}")
            continue
        np.savez(folder / f"{index}.part.npz", *outputs)
        os.replace(folder / f"{index}.part.npz", folder / f"{index}.npz")


if __name__ == "__main__":
    _main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
