"""transformers with the weights of a quantized file, and with the rounding of its kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import torch

from o2o.formats.tensors import is_constant, is_quantized
from o2o.model import Model
from o2o.quantization.compare import dequantized
from o2o.rewriting.stacked_weights import part_names

WEIGHTS = 1  # which operand of FULLY_CONNECTED


def weights_with_rounded_inputs(model: Model) -> set[str]:
    """Find the weights that are multiplied as integers: their inputs are rounded to 8 bits, row by row.

    Args:
        model: The file's graphs.

    Returns:
        Names of parameters.
    """
    names = set()
    for graph in model.graphs:
        for node in graph:
            weight = node.inputs[WEIGHTS] if node.op_type == "FULLY_CONNECTED" else None
            if weight is not None and is_constant(weight) and is_quantized(weight):
                names.update(part_names(weight.name or ""))
    return names


@torch.no_grad()
def emulate_quantization(model: Any, weights: Mapping[str, ir.Value], rounded: set[str]) -> None:
    """Give a model of transformers the weights and the rounding of a quantized file.

    Args:
        model: The model; changed in place.
        weights: {parameter name: the file's constant}.
        rounded: Names of weights whose inputs are rounded to 8 bits.
    """
    for name, value in weights.items():
        model.get_parameter(name).copy_(torch.from_numpy(dequantized(value)))
    names = {id(parameter): name for name, parameter in model.named_parameters()}  # of tied ones, the first
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and names[id(module.weight)] in rounded:
            module.register_forward_pre_hook(lambda module, args: (round_to_8_bits(args[0]),))


def round_to_8_bits(x: torch.Tensor) -> torch.Tensor:
    """Round each row to 256 values from its least to its greatest, including 0, as XNNPACK does.

    Args:
        x: [..., features].

    Returns:
        The rounded tensor.
    """
    least, greatest = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    scale = torch.where(greatest == least, 1.0, 255 / (greatest - least))
    low, high = -128 - least * scale, 127 - greatest * scale
    zero = torch.where(low + high < 0, low, high).clamp(-128, 127).round()
    return ((x * scale).round().add(zero).clamp(-128, 127) - zero) / scale
