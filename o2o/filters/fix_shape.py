"""`fix.shape.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from o2o.cli.arguments import positive_int, shape
from o2o.cli.text import counted, listed
from o2o.contract import Role, role_of
from o2o.errors import UsageError
from o2o.filters.base import Filter
from o2o.model import Model, dims_of
from o2o.operators.onnx_shape_inference import forget_wrong_shapes, infer_shapes
from o2o.rewriting.fix_dimensions import fix_dimensions, symbols_of
from o2o.rewriting.onnx_folding import fold_constants
from o2o.rewriting.static_caches.conversion import make_static
from o2o.rewriting.static_caches.interface import Sizes
from o2o.rewriting.topological_sort import topological_sort
from o2o.roles.finder import find_roles

if TYPE_CHECKING:
    from o2o.check.interface import Expected

ROUNDS = 20
"""Rounds of shape inference and folding, which each may make more shapes known."""


class FixShape(Filter):
    """Give the symbolic dimensions of an ONNX model numbers, and compute what becomes constant.

        ids [B,T] -+- Shape -- Concat -+               ids [1,8] -- Gather -- Reshape [1,8,2,4]
                   +- Gather ------ Reshape   =>
                           fix.shape.py B=1 T=8

    A dimension is named as in the model: inspect.model.py prints the names, and so does this filter without
    any number. An expression of names, such as `past + T`, follows from its names. A dimension without a name
    gets its number by --input, the shape of a whole input.
    Shapes are inferred (onnx.shape_inference). Nodes that depend on small constants alone are replaced by
    their results, an If with a constant condition by its branch. Results above 1 MiB stay operators.
    With --cache-length S, a decoder whose caches grow becomes a static one:

        past [B,K,P,H] -- Concat -- present [B,K,P+T,H]
                                =>
        past [1,K,S,H] -- TensorScatter -- present [1,K,S,H]

    It reads T tokens (--tokens) from its new input `position` on. Positions and masks follow from it and are
    no inputs any more. Dimensions need no numbers then. Caches of GroupQueryAttention get S rows as they are.
    Refused: a name that no input has, a dimension without a number, and Circle or TFLite (reshape.io.py).
    With --cache-length also: caches by other operators, and rows of the past whose number varies.
    """

    name = "fix.shape.py"
    purpose = "Inputs and outputs"
    usage_example = "fix.shape.py batch_size=1 sequence_length=1 < in.onnx > out.onnx"
    input_formats = ("onnx",)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("sizes", nargs="*", metavar="NAME=N", help="the number of a dimension")
        parser.add_argument(
            "--input",
            nargs=2,
            action="append",
            default=[],
            dest="shapes",
            metavar=("NAME", "SHAPE"),
            help="the shape of an input, such as x [1,8]; repeatable",
        )
        parser.add_argument(
            "--cache-length",
            type=positive_int,
            metavar="S",
            help="make caches that grow static, with S rows; needs no sizes",
        )
        parser.add_argument(
            "--tokens",
            type=positive_int,
            default=1,
            metavar="T",
            help="with --cache-length: the tokens of a run (default: %(default)s)",
        )

    def add_input(self, parser: argparse.ArgumentParser) -> None:
        parser.set_defaults(file=None)  # argparse cannot distinguish a file from the numbers before it

    def check_arguments(self, args: argparse.Namespace) -> None:
        if args.sizes and "=" not in args.sizes[-1]:
            args.file = args.sizes.pop()
        args.numbers = dict(_size(text) for text in args.sizes)
        if args.cache_length and (args.sizes or args.shapes):
            raise UsageError("--cache-length gives all dimensions their numbers: give no others")
        args.by_input = {}
        for name, text in args.shapes:
            try:
                args.by_input[name] = shape(text)
            except argparse.ArgumentTypeError as error:
                raise UsageError(f"--input {name}: {error}") from error

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        symbols = symbols_of(model)
        if not args.numbers and not args.by_input and symbols:
            there = ", ".join(f"{name} ({counted(len(of), 'input')})" for name, of in symbols.items())
            raise UsageError(
                f"give each symbolic dimension a number, as {next(iter(symbols))}=1; there are: {there}"
            )
        known = fix_dimensions(model, args.numbers, args.by_input)
        forget_wrong_shapes(model)
        nodes = sum(len(graph) for graph in model.all_graphs())
        for _ in range(ROUNDS):
            infer_shapes(model)
            if not fold_constants(model):
                break
        folded = nodes - sum(len(graph) for graph in model.all_graphs())
        if known:
            self.log("fixed " + ", ".join(f"{name}={size}" for name, size in known.items()))
        self.log(f"{counted(folded, 'operator')} became constant; {_remaining(model)}")

    def transform(
        self, models: Sequence[Model], args: argparse.Namespace, entry: dict[str, Any] | None
    ) -> Model:
        if args.cache_length is None:
            return super().transform(models, args, entry)
        (model,) = models
        sizes = Sizes(args.tokens, args.cache_length)
        result = make_static(model, _roles(model), sizes)
        topological_sort(result.graphs[0])
        if entry is not None:
            result.history.append(entry)
        caches = sum(role.is_cache for role in map(role_of, result.graphs[0].inputs) if role is not None)
        self.log(
            f"{counted(caches, 'cache')} of {sizes.capacity} rows; {counted(sizes.tokens, 'token')} a run, "
            f"from the input {_position(result)!r} on; {_remaining(result)}"
        )
        return result

    def expected(self, models: Sequence[Model], args: argparse.Namespace) -> Expected:
        from o2o.check.interface import Tensors, unchanged, with_outputs

        def inferred(tensors: Tensors) -> Tensors:
            return {name: replace(tensor, is_reshaped=True) for name, tensor in tensors.items()}

        return with_outputs(unchanged(models), lambda entry: inferred(entry.outputs))

    def check(self, models: Sequence[Model], result: Model, args: argparse.Namespace) -> str:
        if args.cache_length is not None:
            from o2o.check.static_caches import check

            roles = {value.name or "": role for value, role in _roles(models[0]).items()}
            return check(models[0], result, roles, Sizes(args.tokens, args.cache_length))
        for model in models:
            fix_dimensions(model, args.numbers, args.by_input)
        return super().check(models, result, args)


def _roles(model: Model) -> dict[ir.Value, Role]:
    """The roles of the inputs and outputs of a model."""
    model.add_default_signature("main")
    return {value: role for findings in find_roles(model) for value, role in findings.roles.items()}


def _position(model: Model) -> str:
    """The name of the position among the inputs."""
    roles = ((value, role_of(value)) for value in model.graphs[0].inputs)
    return next(value.name or "" for value, role in roles if role is not None and role.kind == "position")


def _size(text: str) -> tuple[str, int]:
    name, equals, number = text.rpartition("=")
    if not equals or not name or not number.isdecimal():
        raise UsageError(f"{text!r} is not NAME=N with a number from 0 on, such as batch_size=1")
    return name, int(number)


def _remaining(model: Model) -> str:
    """What is still dynamic."""
    values = [value for graph in model.graphs for node in graph for value in node.outputs if value.name]
    dynamic = [
        v.name or "" for v in values if v.shape is None or any(isinstance(d, str) for d in dims_of(v) or ())
    ]
    if not dynamic:
        return "all shapes are static"
    return f"{counted(len(dynamic), 'tensor')} of {len(values)} still vary: {listed(dynamic, 3)}"


main = FixShape.main
