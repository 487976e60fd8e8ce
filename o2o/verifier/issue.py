"""Issues of the verifier, and their codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import onnx_ir as ir

from o2o.model import Model

Severity = Literal["error", "warning"]

CODES: dict[str, tuple[Severity, str]] = {
    "V001": ("error", "a number of a tensor, buffer, operator code or subgraph that does not exist"),
    "V002": ("error", "a constant whose bytes do not match its dtype and shape"),
    "V003": ("warning", "two tensors of a graph have the same name"),
    "V004": ("error", "a signature names a tensor that is neither an input nor an output of its graph"),
    "V005": ("warning", "a signature lacks an input or output of its graph"),
    "V006": ("error", "two signatures, or two tensors of a signature, have the same name"),
    "V007": ("error", "an operator reads a tensor that a later operator computes"),
    "V008": ("error", "a tensor that is read or returned, but not computed"),
    "V009": ("warning", "an operator computes nothing that is used"),
    "V010": ("warning", "a constant or tensor that nothing uses"),
    "V011": ("error", "metadata of o2o that is damaged, or of a newer version"),
    "V012": ("warning", "external data whose file is missing"),
    "V101": ("error", "an operator with a wrong number of operands or results"),
    "V102": ("error", "a declared shape that differs from the computed one"),
    "V103": ("error", "operands or options that do not fit together"),
    "V104": ("error", "a dtype that the operator does not take or return"),
    "V105": ("warning", "an operator version that is lower than its operands need"),
    "V106": ("error", "scales or zero points that do not fit their tensor"),
    "V107": ("error", "a builtin operator that the format does not have"),
    "V201": ("error", "a role on a tensor of another dtype or rank"),
    "V202": ("error", "caches of a signature that differ in their dimensions"),
    "V203": ("error", "a role that occurs twice, or a cache without a layer"),
    "V204": ("warning", "the contract names a signature or tensor that does not exist"),
    "V205": ("warning", "the contract has another dtype or shape than the tensor"),
    "V206": ("error", "signatures that disagree about the model's dimensions"),
    "V207": ("warning", "a layer with keys and no values, the reverse, or without any cache"),
    "V208": ("error", "a window of the contract that attention does not have, or the reverse"),
    "V301": ("error", "LiteRT cannot run it, not even lowered"),
    "V302": ("error", "LiteRT has no such version of an operator"),
    "V311": ("error", "onert cannot run it, not even legalized"),
    "V321": ("error", "it has no ONNX form"),
    "V331": ("error", "an error of ONNX's checker"),
    "V332": ("error", "ONNX Runtime cannot load it"),
    "V401": ("error", "an error of TICO's verifier"),
    "V402": ("warning", "a warning of TICO's verifier"),
}
"""What each code means. A code never changes its meaning; a rule that is dropped leaves its code unused."""


@dataclass(frozen=True)
class Issue:
    """An issue and its place.

    Attributes:
        code: A key of `CODES`.
        message: What is wrong there.
        graph: The label of the graph, if it is in one.
        operator: The number of the operator in its graph, if it is one.
        tensor: The name of the tensor, or of the operator's first result.
    """

    code: str
    message: str
    graph: str | None = None
    operator: int | None = None
    tensor: str | None = None

    @property
    def severity(self) -> Severity:
        """Whether the file is wrong, or only suspicious."""
        return CODES[self.code][0]

    def text(self) -> str:
        """Format the issue.

        Returns:
            One line: severity, code, place and message.
        """
        place = [] if self.graph is None else [self.graph]
        place += [] if self.operator is None else [f"operator {self.operator}"]
        place += [] if self.tensor is None else [self.tensor]
        where = f"{', '.join(place)}: " if place else ""
        return f"{self.severity} {self.code} {where}{self.message}"

    def as_json(self) -> dict[str, Any]:
        """Return the issue for JSON.

        Returns:
            Its fields, and the severity.
        """
        return {"severity": self.severity, **vars(self)}


class Places:
    """Makes issues at the operators and tensors of one graph."""

    def __init__(self, model: Model, graph: ir.Graph) -> None:
        """Number the operators of a graph.

        Args:
            model: The model of `graph`.
            graph: The graph.
        """
        self.label = model.label(graph)
        self.numbers = {node: index for index, node in enumerate(graph)}

    def at(self, code: str, node: ir.Node, message: str) -> Issue:
        """Make an issue of an operator.

        Args:
            code: A key of `CODES`.
            node: The operator.
            message: What is wrong, without the operator's name.

        Returns:
            The issue.
        """
        name = next((value.name for value in node.outputs if value.name), None)
        return Issue(code, f"{node.op_type}: {message}", self.label, self.numbers[node], name)

    def of(self, code: str, value: ir.Value, message: str) -> Issue:
        """Make an issue of a tensor.

        Args:
            code: A key of `CODES`.
            value: The tensor.
            message: What is wrong.

        Returns:
            The issue.
        """
        return Issue(code, message, self.label, tensor=value.name)
