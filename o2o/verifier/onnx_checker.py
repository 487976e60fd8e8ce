"""ONNX's own checker, with shape inference, on a model whose weights are not read."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from o2o.errors import ModelError
from o2o.formats.onnx_writer import write_without_data
from o2o.model import Model
from o2o.streams.temporary import temporary_folder
from o2o.verifier.issue import Issue


def checker_issues(model: Model) -> Iterator[Issue]:
    """Run the full check: references, attributes, types, and shapes that agree with the inferred ones.

    Args:
        model: An ONNX model.

    Yields:
        Issue V331: the first error.
    """
    try:
        with temporary_folder() as folder:
            path = folder / "model.onnx"
            write_without_data(model, path)
            onnx.checker.check_model(str(path), full_check=True)
    except (
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        ModelError,
        RuntimeError,
    ) as error:
        yield Issue("V331", " ".join(str(error).split()))
