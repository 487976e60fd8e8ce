"""Which stored tensor of a checkpoint belongs to which parameter of the model."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection

from export.model import LanguageModel
from export.parameter_binding import describe_skipped
from export.stored_names import match_names
from o2o.cli.text import listed
from o2o.errors import ModelError
from o2o.weights.checkpoint import Checkpoint
from o2o.weights.weight_source import WeightSource


def match_parameters(
    model: LanguageModel,
    checkpoint: Checkpoint,
    strict: bool = False,
    log: Callable[[str], None] = lambda line: None,
    skip: Callable[[str], object] = lambda name: None,
) -> dict[str, WeightSource]:
    """Match each parameter of `model` with a tensor of `checkpoint` by name and shape.

    A tied parameter may be stored under any of its names. Tensors that no parameter takes are skipped.

    Args:
        model: The model without weights.
        checkpoint: Its weights.
        strict: Refuse tensors that would be skipped.
        log: Receives a line about the tensors that are skipped.
        skip: Receives the name of each of them.

    Returns:
        {parameter name: stored tensor}, in the model's order.

    Raises:
        ModelError: A tensor is missing or of another shape, or superfluous and `strict`; or it
            is not floating point.
    """
    names = match_names(model.module, checkpoint.tensors)
    stored = names.of_parameters
    for target, (name, operations) in names.converted.items():
        raise ModelError(
            f"{checkpoint.directory}: transformers computes {target} from the stored {name} ({operations}), "
            "which export does not: save the model with `save_pretrained(DIR, save_original_format=False)`"
        )
    matched: dict[str, WeightSource] = {}
    for name in model.parameters:
        alias = next((alias for alias in (name, *model.aliases.get(name, ())) if alias in stored), None)
        if alias is not None:
            matched[name] = checkpoint.tensors[stored[alias]]
    for source in matched.values():
        source.check_float()
    missing = [name for name in model.parameters if name not in matched]
    problems = [f"lacks {_described(missing, names.unexpected)}"] if missing else []
    problems += [
        f"has {matched[name].name} as {list(matched[name].shape)}, not {list(shape)}"
        for name, shape in model.parameters.items()
        if name in matched and matched[name].shape != shape
    ][:3]
    if names.unexpected and (strict or missing):
        problems.append(f"holds {listed(names.unexpected, 4)}, which the model does not use")
    if problems:
        raise ModelError(f"{checkpoint.directory} does not fit its config.json: {'; '.join(problems)}")
    for name in names.unexpected:
        skip(name)
    if names.unexpected:
        log(describe_skipped(names.unexpected, checkpoint.tensors))
    return matched


def _described(missing: Collection[str], unexpected: Collection[str]) -> str:
    """The names of missing parameters; the first with the most similar stored name, if there is one."""
    first = next(iter(missing))
    similar = difflib.get_close_matches(first, unexpected, 1, 0.8)
    return listed(missing, 4) + (f" (the most similar name stored is {similar[0]})" if similar else "")
