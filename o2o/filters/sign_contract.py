"""`sign.contract.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from o2o.cli.text import counted, listed
from o2o.contract import Kind, Role
from o2o.errors import ModelError, UsageError
from o2o.filters.base import ALL_FORMATS, Filter
from o2o.model import Model, dims_of
from o2o.roles import Findings, find_roles
from o2o.signatures import buckets_of, capacity_of, find_decode, prefills_of
from o2o.streams.temporary import temporary_folder

if TYPE_CHECKING:
    from o2o.check.interface import Expected

_LAYERED = ("key_cache", "value_cache", "key", "value")


class SignContract(Filter):
    """Find the role of each input and output of a language model, and write them into its contract.

        tico::input_ids [1,1] ------------ GATHER embedding          tokens
        tico::cache_position [1] --------- GREATER mask         =>   position
        tico::past_..._key_cache_0 ------- BATCH_MATMUL scores       key_cache, layer 0, BNTH
        linear_56 [1,1,V]                                            logits

    Roles come from data flow first, then from names, and --role says the rest. The token ids index an
    embedding. A position is a place of writing, or turns keys. Keys are multiplied with queries before a
    SOFTMAX, and values after it. Layers are numbered in the order of execution.
    Of ONNX, names come first: exporters use those of transformers. Then come operators that append rows to a
    cache or write rows into it.
    Decode is the signature that takes caches and reads one token; the others that read tokens are prefills.
    Roles that a contract gives already stay, except for those in --role. Only the contract changes.
    Refused: a model without any signature that is complete; the message says what is missing.
    """

    name = "sign.contract.py"
    purpose = "Inputs and outputs"
    input_formats = ALL_FORMATS
    usage_example = "sign.contract.py --role args_0=tokens --layout BNTH < in.tflite > out.tflite"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--role",
            type=_named_role,
            action="append",
            default=[],
            metavar="NAME=ROLE",
            help=f"the role of an input or output: {', '.join(get_args(Kind))}; with a layer as key_cache:0",
        )
        parser.add_argument(
            "--layout",
            type=_named_layout,
            action="append",
            default=[],
            metavar="[NAME=]LAYOUT",
            help="the axes of a cache, or of all caches whose layout is not clear: BNTH for [1,K,S,H], "
            "BTNH for [1,S,K,H], BNHT for [1,K,H,S]",
        )
        parser.add_argument("--signature", metavar="NAME", help="--role and --layout are for this one only")

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        if not model.signatures:
            model.add_default_signature(_default_name(model))
        given, layouts = dict(args.role), dict(args.layout)
        self._check_names(model, [*given, *(name for name in layouts if name)], args.signature)
        results = find_roles(model, given, layouts, args.signature)
        missing = {one.signature.name: one.missing() for one in results}
        if all(missing.values()):
            lines = [f"{name}: {'; '.join(lines)}" for name, lines in missing.items()]
            raise ModelError("; ".join(lines))
        for findings in results:
            for line in _summary(findings):
                self.log(f"{findings.signature.name}: {line}")
            for line in missing[findings.signature.name]:
                self.log(f"{findings.signature.name}: missing: {line}")
        self.log(_purposes(model))

    def expected(self, models: Sequence[Model], args: argparse.Namespace) -> Expected:
        from o2o.check.interface import ExpectedSignature, Tensors, unchanged, with_inputs, with_outputs

        (model,) = models
        if not model.signatures:
            model.add_default_signature(_default_name(model))

        def signed(tensors: Tensors) -> Tensors:
            return {name: replace(tensor, gets_role=True) for name, tensor in tensors.items()}

        def inputs(expected: ExpectedSignature) -> Tensors:
            return signed(expected.inputs)

        def outputs(expected: ExpectedSignature) -> Tensors:
            return signed(expected.outputs)

        return with_inputs(with_outputs(unchanged(models), outputs), inputs)

    def check(self, models: Sequence[Model], result: Model, args: argparse.Namespace) -> str:
        from o2o.check.model_copies import copied
        from o2o.check.role_behavior import refuse_wrong_roles

        sentence = super().check(models, result, args)
        with temporary_folder() as folder:
            refuse_wrong_roles(copied(result, str(Path(folder) / "result")))
        return sentence

    def _check_names(self, model: Model, names: Sequence[str], only: str | None) -> None:
        signatures = [one for one in model.signatures if only in (None, one.name)]
        if not signatures:
            there = listed([one.name for one in model.signatures])
            raise UsageError(f"there is no signature {only!r}; there are: {there}")
        known = {
            name: None
            for signature in signatures
            for values in (signature.inputs, signature.outputs)
            for public, value in values.items()
            for name in (public, value.name or "")
        }
        for name in names:
            if name not in known:
                raise UsageError(f"there is no input or output {name!r}; there are: {listed([*known])}")


def _named_role(text: str) -> tuple[str, Role]:
    """`NAME=ROLE` or `NAME=ROLE:LAYER`. A name may have `=` and `:` in it."""
    name, equals, role = text.rpartition("=")
    kind, colon, layer = role.partition(":")
    needs_layer = kind in _LAYERED
    if not equals or not name or kind not in get_args(Kind):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=ROLE with {', '.join(get_args(Kind))}")
    if needs_layer != bool(colon) or (colon and not layer.isdecimal()):
        example = f"{kind}:0" if needs_layer else kind
        raise argparse.ArgumentTypeError(f"{text!r}: write the role as {example}")
    return name, Role(kind, int(layer) if colon else None)  # type: ignore[arg-type]


def _named_layout(text: str) -> tuple[str, str]:
    """`LAYOUT` or `NAME=LAYOUT`; the name is "" for all."""
    name, _, layout = text.rpartition("=")
    layout = layout.upper()
    if sorted(layout) != sorted("BNTH"):
        raise argparse.ArgumentTypeError(f"{layout!r} is no layout: give the four letters B, N, T and H")
    return name, layout


def _default_name(model: Model) -> str:
    """The name of the only graph's signature: `decode` if it may take caches, else `prefill`."""
    takes_caches = any(len(dims_of(value) or ()) >= 3 for value in model.graphs[0].inputs)
    return "decode" if takes_caches else "prefill"


def _summary(findings: Findings) -> list[str]:
    """The roles, one line for each kind."""
    lines = []
    for kind in get_args(Kind):
        values = [value for value, role in findings.roles.items() if role.kind == kind]
        if not values:
            continue
        names = findings.names(kind)
        reasons = listed(list(dict.fromkeys(findings.reasons[value] for value in values)))
        shape = f"[{','.join(map(str, dims_of(values[0]) or ()))}]"
        if kind in _LAYERED:
            layout = findings.roles[values[0]].layout
            layers = counted(len(values), "layer")
            lines.append(f"{kind} of {layers}, {shape} {layout}: {listed(names, 2)} by {reasons}")
        else:
            lines.append(f"{kind} {shape}: {listed(names)} by {reasons}")
    if findings.unused:
        lines.append(f"no operator reads {listed(findings.unused)}")
    return lines


def _purposes(model: Model) -> str:
    decode, prefills, buckets = find_decode(model), prefills_of(model), buckets_of(model)
    decode_text = f"decode is {decode.name} (capacity {capacity_of(decode)})" if decode else "no decode"
    parts = [
        decode_text,
        *(f"prefill {one.name}" for one in prefills),
        *(f"bucket {one.name}" for one in buckets),
    ]
    return ", ".join(parts)


main = SignContract.main
