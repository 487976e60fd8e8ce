"""A Circle file lowered to ONNX."""

from __future__ import annotations

from pathlib import Path

from o2o import garbage_collection
from o2o.contract import NUM_LOGITS
from o2o.errors import ModelError
from runtime_py.engines.model_file import ModelFile

FORM = "ort"
"""The ONNX form with ONNX Runtime's own operators; see `o2o.lower.onnx.lower_to_onnx`."""
MODEL = "model.onnx"
"""Name of the ONNX file in the disk cache."""
WEIGHT_DTYPE = "o2o.weight_dtype"
"""Name of the metadata entry with the dtype of the weights, for display."""


@garbage_collection.paused()
def lower_file(model: ModelFile, onnx: Path, row_exact: bool = False) -> None:
    """Lower a model to ONNX, with an input `num_logits`.

    Args:
        model: A Circle file.
        onnx: The new file. Large weights go to other files in its folder.
        row_exact: Whether products with int8 weights are to have the same bits for any number of tokens, as
            drafts need it (`runtime_py.engines.onnx.row_exact_blocks`). They may be slower.

    Raises:
        ModelError: The model cannot be lowered to ONNX.
        OSError: A file cannot be read or written.
    """
    from o2o import formats
    from o2o.formats.onnx_writer import new_model
    from o2o.lower.onnx import MAX_BLOCK, lower_to_onnx
    from runtime_py.engines.onnx.row_exact_blocks import largest_row_exact_block

    graphs, _ = model.read()
    try:
        max_block = largest_row_exact_block(8) if row_exact else MAX_BLOCK
        lowered = lower_to_onnx(graphs, FORM, NUM_LOGITS, max_block)
        lowered.metadata_props[WEIGHT_DTYPE] = model.weight_dtype
        formats.save(new_model(lowered), onnx)
    except ModelError as error:
        raise ModelError(f"{model.path}: {error}") from error
