"""Which stored tensor of a checkpoint belongs to which parameter of the model."""

from __future__ import annotations

from export.model import LanguageModel
from o2o.cli.text import listed
from o2o.errors import ModelError
from o2o.weights.checkpoint import Checkpoint
from o2o.weights.stored_tensor import StoredTensor


def match_parameters(model: LanguageModel, checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """Match each parameter of `model` with a tensor of `checkpoint` by name and shape.

    A tied parameter may be stored under any of its names.

    Args:
        model: The model without weights.
        checkpoint: Its weights.

    Returns:
        {parameter name: stored tensor}, in the model's order.

    Raises:
        ModelError: A tensor is missing, superfluous or of another shape, or tied parameters are stored with
            different values.
    """
    ignored = model.family.ignored_tensors
    unmatched = {name: tensor for name, tensor in checkpoint.tensors.items() if not ignored.search(name)}
    matched: dict[str, StoredTensor] = {}
    for name in model.parameters:
        names = (name, *model.aliases.get(name, ()))
        stored = [unmatched.pop(alias) for alias in names if alias in unmatched]
        if stored:
            matched[name] = stored[0]
        for other in stored[1:]:
            if not _same_bytes(stored[0], other):
                raise ModelError(
                    f"{checkpoint.directory}: config.json ties {name} to {other.name}, but they are stored "
                    "with different values: set tie_word_embeddings to false there"
                )
    missing = [name for name in model.parameters if name not in matched]
    problems = [f"lacks {listed(missing, 4)}"] if missing else []
    problems += [f"holds {listed(unmatched, 4)}, which the model does not use"] if unmatched else []
    problems += [
        f"has {name} as {list(matched[name].shape)}, not {list(shape)}"
        for name, shape in model.parameters.items()
        if name in matched and matched[name].shape != shape
    ][:3]
    if problems:
        raise ModelError(f"{checkpoint.directory} does not fit its config.json: {'; '.join(problems)}")
    return matched


def _same_bytes(a: StoredTensor, b: StoredTensor, chunk: int = 16 << 20) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    with open(a.path, "rb") as left, open(b.path, "rb") as right:
        left.seek(a.offset)
        right.seek(b.offset)
        for start in range(0, a.length, chunk):
            size = min(chunk, a.length - start)
            if left.read(size) != right.read(size):
                return False
    return True
