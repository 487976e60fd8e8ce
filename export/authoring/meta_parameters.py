"""Modules whose parameters have shapes only, while their buffers have numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


@contextlib.contextmanager
def meta_parameters() -> Iterator[None]:
    """Let new modules have parameters on the meta device and buffers on the CPU.

    `torch.device("meta")` would leave buffers without numbers. The memory of a parameter is freed when it is
    registered. It was not touched until then, as the functions of `torch.nn.init` do nothing.

    Yields:
        Nothing.
    """
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:  # a tied one stays the same object
            parameter = nn.Parameter(parameter.data.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    replaced: list[tuple[Any, str, Any]] = [(nn.Module, "register_parameter", register_on_meta)]
    replaced += [(nn.init, name, _unchanged) for name in dir(nn.init) if name.strip("_") + "_" == name]
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.device("cpu"))
        for owner, name, function in replaced:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, function)
        yield


def _unchanged(tensor: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
    """Serve as a function of `torch.nn.init` that leaves its tensor as it is."""
    return tensor
