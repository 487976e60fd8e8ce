"""What a filter may change about the interface of a model: which results derive from which.

A filter describes the interface that its result must have, from its input and its arguments alone
(`o2o.filters.base.Filter.expected`). What the description lacks must not appear, and what it names must not
disappear. One thing needs no description: keys and values that one model returns may be written into a cache,
in place, by the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from o2o.check.runner import UNNAMED, Io, IoTensor
from o2o.errors import ModelError
from o2o.model import Model, Signature, operands, unique_name

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ExpectedTensor:
    """An input or output of the result.

    Attributes:
        source: The input or output of the original that it derives from, by its name in the signature. For a
            part of a graph, the name of a tensor.
        shape: Its shape; None for that of the source.
        dtype: Its dtype; None for that of the source.
        is_reshaped: Whether its shape may be any that holds the same elements, by layout or in order.
        gets_role: Whether the filter may give it another role in the contract.
    """

    source: str
    shape: Shape | None = None
    dtype: np.dtype | None = None
    is_reshaped: bool = False
    gets_role: bool = False


Tensors = dict[str, ExpectedTensor]


@dataclass(frozen=True)
class ExpectedSignature:
    """A signature of the result.

    Attributes:
        name: Its name.
        model: The number of the original model that it derives from.
        source: The signature of that model that it derives from.
        inputs: Its inputs by name, in order.
        outputs: Its outputs by name, in order.
        is_part: Whether it computes a part of the source: its inputs and outputs are tensors of that graph.
        is_ordered: Whether inputs and outputs must have this order.
    """

    name: str
    model: int
    source: str
    inputs: Tensors = field(default_factory=dict)
    outputs: Tensors = field(default_factory=dict)
    is_part: bool = False
    is_ordered: bool = True


Expected = list[ExpectedSignature]


def unchanged(models: Sequence[Model]) -> Expected:
    """Expect the signatures of the originals, with the same inputs and outputs.

    Args:
        models: The originals. Their signatures are completed, see `name_all`.

    Returns:
        The expected interface.
    """
    expected = []
    for number, model in enumerate(models):
        name_all(model)
        for signature in model.signatures:
            inputs, outputs = (
                {name: ExpectedTensor(name) for name in names}
                for names in (signature.inputs, signature.outputs)
            )
            expected.append(ExpectedSignature(signature.name, number, signature.name, inputs, outputs))
    return expected


def name_all(model: Model) -> None:
    """Complete the signatures, so that every input and output can be fed and compared.

    Args:
        model: A model that is not written. A main graph without a signature gets one called `main`. Inputs
            and outputs that a signature lacks get their own names in it, which `Io.unnamed` lists.
    """
    model.add_default_signature("main")
    for signature in model.signatures:
        graph = signature.graph
        for public, values in ((signature.inputs, graph.inputs), (signature.outputs, graph.outputs)):
            present, taken = {id(value) for value in public.values()}, set(public)
            for value in values:
                if id(value) not in present:
                    name = unique_name(value.name or "", taken)
                    public[name] = value
                    present.add(id(value))
                    signature.graph.meta.setdefault(UNNAMED, set()).add((signature.name, name))


def signature_of(models: Sequence[Model], expected: ExpectedSignature) -> Signature:
    """Return the signature that an expected one derives from.

    Args:
        models: The originals.
        expected: The expected signature.

    Returns:
        The signature of the original.
    """
    return next(s for s in models[expected.model].signatures if s.name == expected.source)


def with_outputs(expected: Expected, change: Callable[[ExpectedSignature], Tensors]) -> Expected:
    """Change the expected outputs.

    Args:
        expected: The expected interface.
        change: Returns the outputs to expect of a signature.

    Returns:
        The changed interface.
    """
    return [replace(signature, outputs=change(signature)) for signature in expected]


def with_inputs(expected: Expected, change: Callable[[ExpectedSignature], Tensors]) -> Expected:
    """Change the expected inputs.

    Args:
        expected: The expected interface.
        change: Returns the inputs to expect of a signature.

    Returns:
        The changed interface.
    """
    return [replace(signature, inputs=change(signature)) for signature in expected]


def renamed(
    models: Sequence[Model],
    rename: Callable[[str], str | None],
    sides: Sequence[str],
    signature: str | None,
) -> Expected:
    """Expect other names of inputs or outputs.

    Args:
        models: The originals.
        rename: Maps the name of a tensor, or else its name in a signature, to its new name or None.
        sides: `input`, `output` or both.
        signature: Only its graph is changed; None for all.

    Returns:
        The expected interface.
    """
    expected = []
    for entry in unchanged(models):
        source = signature_of(models, entry)
        graphs = [s.graph for s in models[entry.model].signatures if s.name == signature]
        others = list(models[entry.model].signatures_of(source.graph))

        def new_name(public: str, values: Mapping[str, ir.Value], others: Sequence[Signature]) -> str:
            names = [values[public].name or ""]
            for other in others:
                pairs = (*other.inputs.items(), *other.outputs.items())
                names += [name for name, value in pairs if value is values[public]]
            return next((new for name in names if (new := rename(name)) is not None), public)

        inputs, outputs = entry.inputs, entry.outputs
        if signature is None or source.graph in graphs:
            if "input" in sides:
                inputs = {new_name(n, source.inputs, others): t for n, t in inputs.items()}
            if "output" in sides:
                outputs = {new_name(n, source.outputs, others): t for n, t in outputs.items()}
        expected.append(replace(entry, inputs=inputs, outputs=outputs))
    return expected


def part(
    models: Sequence[Model],
    expected: ExpectedSignature,
    nodes: Sequence[ir.Node],
    first: Sequence[ir.Value] = (),
    last: Sequence[ir.Value] | None = None,
) -> ExpectedSignature:
    """Expect a part of a graph: some of its nodes.

    Args:
        models: The originals.
        expected: A signature of an original.
        nodes: The nodes that stay, of its graph.
        first: Tensors that are its first inputs, also if one of the nodes computes them.
        last: Its outputs; None for those that remain and those that other nodes use.

    Returns:
        The signature with the tensors that enter and leave the part.

    Raises:
        ModelError: A resource or variant enters or leaves it.
    """
    source = signature_of(models, expected)
    computed = [value for node in nodes for value in node.outputs]
    used = [value for node in nodes for value in operands(node)]
    entering = [v for v in used if v.producer() is not None and v not in computed]
    if last is None:
        outside = [node for node in source.graph if node not in nodes]
        needed_outside = {id(value) for node in outside for value in operands(node)}
        leaving = [value for value in computed if id(value) in needed_outside]
        stays = [v for v in source.graph.outputs if v in computed or v.producer() is None]
        last = [*stays, *(v for v in leaving if not v.is_graph_output())]
        unused = [v for v in source.graph.inputs if not v.uses()]
    else:
        unused = []
    needed = [v for v in source.graph.inputs if v in used or v in unused or v in last]
    for value in (*first, *entering, *last):
        if value.dtype is None:
            raise ModelError(
                f"--check: the part is cut at {value.name}, a resource or variant, which no engine can be "
                "fed: select all operators of the original that use it"
            )
    return replace(
        expected,
        inputs=_tensors([*first, *needed, *entering], source.inputs),
        outputs=_tensors(last, source.outputs),
        is_part=True,
    )


def _tensors(values: Iterable[ir.Value], public: Mapping[str, ir.Value]) -> Tensors:
    """Values by their names in a signature, or else by their own, made unique."""
    values = list(dict.fromkeys(values))
    names = {name: value for name, value in public.items() if value in values}
    taken = set(names)
    tensors: Tensors = {}
    for value in values:
        of_value = [name for name, other in names.items() if other is value]
        for name in of_value or [unique_name(value.name or "", taken)]:
            tensors[name] = ExpectedTensor(value.name or "")
    return tensors


def refuse_changed_interface(
    expected: Expected, old: Sequence[Mapping[str, Io]], new: Mapping[str, Io]
) -> None:
    """Compare the interface of a result with the expected one.

    Args:
        expected: The expected interface.
        old: Inputs and outputs of each original, by signature.
        new: Those of the result.

    Raises:
        ModelError: Something disappeared, appeared, or has another shape, dtype, role or order.
    """
    names = [signature.name for signature in expected]
    if missing := [name for name in names if name not in new]:
        raise ModelError(f"--check: signature {missing[0]} disappeared")
    if added := [name for name in new if name not in names]:
        raise ModelError(f"--check: signature {added[0]} is new, and it derives from none of the original")
    if [name for name in new if name in names] != names and all(s.is_ordered for s in expected):
        raise ModelError(f"--check: the signatures have another order: {', '.join(new)}")
    for signature in expected:
        source, result = old[signature.model][signature.source], new[signature.name]
        _refuse_names(signature, source, result)
        if not signature.is_part:
            _refuse_tensors("input", signature.name, signature.inputs, source.inputs, result.inputs)
            _refuse_tensors("output", signature.name, signature.outputs, source.outputs, result.outputs)


def _refuse_names(expected: ExpectedSignature, source: Io, result: Io) -> None:
    for io, names, actual in (
        ("input", expected.inputs, result.inputs),
        ("output", expected.outputs, result.outputs),
    ):
        replaced = _slots(result, result.updated) if io == "output" else set()
        returned = _slots(source, source.updated) if io == "output" else set()
        if io == "output":
            _refuse_lost_caches(expected, source, result)
        for name, tensor in names.items():
            known = source.outputs if io == "output" else source.inputs
            slot = known[tensor.source].slot if tensor.source in known else None
            if name not in actual and (slot is None or slot not in replaced):
                raise ModelError(f"--check: {io} {name} of {expected.name} disappeared")
            if name in result.unnamed and tensor.source not in source.unnamed and not expected.is_part:
                raise ModelError(f"--check: {io} {name} of {expected.name} disappeared from the signature")
        for name, tensor_ in actual.items():
            if name not in names and (tensor_.slot is None or tensor_.slot not in returned):
                raise ModelError(
                    f"--check: {io} {name} of {expected.name} is new, and it derives from nothing in the "
                    "original"
                )
        order = [name for name in names if name in actual]
        is_ordered = expected.is_ordered and (source.in_order or (io == "output" and not expected.is_part))
        if is_ordered and [name for name in actual if name in names] != order:
            raise ModelError(f"--check: the {io}s of {expected.name} have another order: {', '.join(actual)}")


def _refuse_lost_caches(expected: ExpectedSignature, source: Io, result: Io) -> None:
    """A cache that the original updates is updated by the result too, or returned."""
    if expected.is_part:
        return
    there = _slots(result, result.updated) | {tensor.slot for tensor in result.outputs.values()}
    for name in source.updated:
        if source.inputs[name].slot not in there:
            raise ModelError(f"--check: the updated cache {name} of {expected.name} disappeared")


def _slots(io: Io, updated: Iterable[str]) -> set:
    """The caches that a run updates in place, as slots."""
    return {io.inputs[name].slot for name in updated} - {None}


def _refuse_tensors(
    io: str, signature: str, expected: Tensors, source: Mapping[str, IoTensor], result: Mapping[str, IoTensor]
) -> None:
    for name, tensor in expected.items():
        if name not in result or tensor.source not in source:
            continue
        old, new = source[tensor.source], result[name]
        where = f"--check: {io} {name} of {signature}"
        shape, dtype = tensor.shape or old.shape, tensor.dtype or old.dtype
        if not tensor.is_reshaped and new.shape != shape:
            raise ModelError(f"{where} became {list(new.shape)} instead of {list(shape)}")
        if new.dtype != dtype:
            raise ModelError(f"{where} became {new.dtype} instead of {dtype}")
        if not tensor.is_reshaped and tensor.shape is None and new.dynamic != old.dynamic:
            raise ModelError(
                f"{where} has axes of other sizes: {list(new.dynamic)} vary, not {list(old.dynamic)}"
            )
        if _role(old) != _role(new) and not tensor.gets_role:
            raise ModelError(f"{where} has the role {_role(new)} in the contract, not {_role(old)}")


def _role(tensor: IoTensor) -> str:
    if tensor.role is None:
        return "none"
    return tensor.role.kind + ("" if tensor.role.layer is None else f" of layer {tensor.role.layer}")


def paired(first: Mapping[str, Io], new: Mapping[str, Io], same_outputs: bool = False) -> Expected:
    """Pair the interfaces of two models of unknown history: by names, roles, or order.

    Args:
        first: Inputs and outputs of the first model, by signature.
        new: Those of the second.
        same_outputs: Leave outputs out that only one of them has.

    Returns:
        The interface to expect of the second model.

    Raises:
        ModelError: They have different numbers of signatures, inputs or outputs.
    """
    names = _pairs("signature", "the models", dict.fromkeys(new), dict.fromkeys(first))
    expected = []
    for name, source in names.items():
        a, b = first[source], new[name]
        inputs = _pairs("input", name, _keys(b.inputs), _keys(a.inputs))
        # Keys and values that one model writes in place, and the other returns, are compared by their slots.
        written = _slots(a, a.updated), _slots(b, b.updated)
        returned = [
            _keys(
                {
                    name: tensor
                    for name, tensor in io.outputs.items()
                    if name in other.outputs or not (same_outputs or tensor.slot in caches)
                }
            )
            for io, other, caches in ((b, a, written[0]), (a, b, written[1]))
        ]
        outputs = _pairs("output", name, returned[0], returned[1])
        expected.append(
            ExpectedSignature(
                name,
                0,
                source,
                {n: ExpectedTensor(s, is_reshaped=True) for n, s in inputs.items()},
                {n: ExpectedTensor(s, is_reshaped=True) for n, s in outputs.items()},
                is_ordered=False,
            )
        )
    return expected


def _keys(tensors: Mapping[str, IoTensor]) -> dict[str, object]:
    return {
        name: (tensor.role.kind, tensor.role.layer) if tensor.role is not None else None
        for name, tensor in tensors.items()
    }


def _pairs(what: str, where: str, new: Mapping[str, object], old: Mapping[str, object]) -> dict[str, str]:
    """The old name of each new one: the same, else of the same role, else in the same place."""
    if len(new) != len(old):
        raise ModelError(
            f"--check: {where} have {len(old)} and {len(new)} {what}s"
            if what == "signature"
            else f"--check: {where} has {len(old)} {what}s in the first model and {len(new)} in the second"
        )
    if set(new) == set(old):
        return {name: name for name in new}
    by_role = {role: name for name, role in old.items() if role is not None}
    pairs = {name: name if name in old else by_role.get(role) for name, role in new.items()}
    if None in pairs.values() or len(set(pairs.values())) < len(old):
        return dict(zip(new, old, strict=True))
    return {name: source for name, source in pairs.items() if source is not None}
