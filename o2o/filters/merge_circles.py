"""`merge.circles.py`."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from o2o.errors import ModelError, UsageError
from o2o.filters.base import ALL_FORMATS, Filter
from o2o.formats import tensor_descriptions
from o2o.formats.fingerprint import fingerprint
from o2o.model import Model, Signature, attribute
from o2o.rewriting.deduplicate_constants import deduplicate_constants
from o2o.rewriting.onnx_merging import add_functions, selection
from o2o.rewriting.onnx_opsets import raise_opsets
from o2o.rewriting.topological_sort import topological_sort

if TYPE_CHECKING:
    from o2o.check.interface import Expected


class MergeCircles(Filter):
    """Merge models into one, with all their subgraphs and signatures; equal constants are stored once.

        prefill.circle: prefill -- weights                      prefill -+
                                               =>   model.circle         +- weights
        decode.circle:  decode --- weights                      decode --+

    Signatures keep their names. A main graph without a signature gets one with the name of its file.
    --sig-names renames all signatures.
    Constants with equal bytes (SHA-256), within a file or across files, share one buffer. The filter reports
    how many, and the bytes saved.
    Variables with the same name in two files become one variable, which the filter reports.
    ONNX has one graph a file. There, signatures are the branches of an If, which ONNX Runtime takes. The file
    has the inputs and outputs of all graphs. The size of an input selects the branch, such as the number of
    tokens, if it differs in all graphs. Otherwise an input does, which a message names. Other filters see
    several signatures, as in Circle.
    Refused: two signatures with the same name; files of different formats; of ONNX, inputs or outputs of one
    name and different types.
    Older name: merge.circle.py.
    """

    name = "merge.circles.py"
    purpose = "Combine, cut, clean up, inspect"
    input_formats = ALL_FORMATS
    usage_example = "merge.circles.py prefill.circle decode.circle > model.circle"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--sig-names",
            metavar="A;B",
            help="names for all signatures, in the order of the files, separated by ; or by commas",
        )

    def add_input(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("files", nargs="+", metavar="MODEL", help="files of one format; `-` is stdin")

    def input_files(self, args: argparse.Namespace) -> list[str]:
        return list(args.files)

    def input_fingerprint(self, models: Sequence[Model]) -> str:
        fingerprints = "".join(fingerprint(model) for model in models)
        return f"sha256:{hashlib.sha256(fingerprints.encode()).hexdigest()}"

    def transform(
        self, models: Sequence[Model], args: argparse.Namespace, entry: dict[str, Any] | None
    ) -> Model:
        for model, file in zip(models, args.files, strict=True):
            model.add_default_signature("model" if file == "-" else Path(file).stem)
        if args.sig_names is not None:
            _rename(
                [s for model in models for s in model.signatures],
                args.sig_names.split(";" if ";" in args.sig_names else ","),
            )
        merged = self.merged(models, args.files)
        for graph in merged.all_graphs():
            topological_sort(graph)
        if entry is not None:
            merged.history.append(entry)
        return merged

    def expected(self, models: Sequence[Model], args: argparse.Namespace) -> Expected:
        from o2o.check.interface import unchanged

        for model, file in zip(models, args.files, strict=True):
            model.add_default_signature("model" if file == "-" else Path(file).stem)
        expected = unchanged(models)
        if args.sig_names is None:
            return expected
        names = args.sig_names.split(";" if ";" in args.sig_names else ",")
        return [replace(entry, name=name.strip()) for entry, name in zip(expected, names, strict=True)]

    def merged(self, models: Sequence[Model], files: Sequence[str]) -> Model:
        """Merge models.

        Args:
            models: The models, which cannot be used afterwards.
            files: The names of their files.

        Returns:
            The merged model.

        Raises:
            ModelError: Two signatures have the same name, or the formats differ.
        """
        first = models[0]
        result = Model(first.format, [], fields=first.fields)
        owner: dict[str, str] = {}
        variable_of: dict[str, str] = {}
        for model, file in zip(models, files, strict=True):
            if model.format != first.format:
                raise ModelError(
                    f"{files[0]} is {first.format} and {file} is {model.format}: convert one first"
                )
            for signature in model.signatures:
                if signature.name in owner:
                    clash = f"both {owner[signature.name]} and {file} have a signature {signature.name!r}"
                    raise ModelError(f"{clash}: rename them with --sig-names")
                owner[signature.name] = file
                result.signatures.append(signature)
            if model.format == "onnx":
                self._join_onnx(result, model)
            result.graphs += model.graphs
            for weights, tensors in model.unused.items():
                result.unused.setdefault(weights, {}).update(tensors)
            self._add_metadata(result, model, file)
            self._add_associated_files(result, model, file)
            for name in sorted(_variables(model)):
                if name in variable_of:
                    self.log(f"{variable_of[name]} and {file} now share the variable {name!r}")
                variable_of[name] = file
            result.history.append({"merged": Path(file).name, "history": model.history})
        _make_graph_names_unique(result)
        total, shared, saved = deduplicate_constants(result)
        names = ", ".join(signature.name for signature in result.signatures)
        self.log(f"merged {names}: shared {shared} of {total} constants, which saves {saved:,} bytes")
        if result.format == "onnx" and len(result.graphs) > 1:
            self.log(selection(result))
        return result

    def _join_onnx(self, result: Model, model: Model) -> None:
        """Let a model of ONNX be part of `result`: one opset, one IR version, one set of functions."""
        if result.graphs:
            self.messages += raise_opsets([result, model])
        version = max(model.fields.get("ir_version", 0), result.fields.get("ir_version", 0))
        result.fields = {**model.fields, **result.fields, "ir_version": version}
        add_functions(result, model)

    def _add_metadata(self, result: Model, model: Model, file: str) -> None:
        known = dict(result.metadata)
        if tensor_descriptions.METADATA_NAME in known:  # it describes the tensors of the first file
            tensor_descriptions.detach(model)
        new_index: dict[int, int] = {}  # of the entries of `model`
        for index, (name, data) in enumerate(model.metadata):
            if name in known and known[name] != data:
                self.log(f"{file}: its metadata {name!r} is dropped: it differs from that of an earlier file")
                continue
            if name not in known:
                result.metadata.append((name, data))
            new_index[index] = result.metadata.index((name, data))
        for graph in model.graphs:
            fields = graph.meta.get("fields", {})
            if (index := fields.pop("debugMetadataIndex", -1)) in new_index:
                fields["debugMetadataIndex"] = new_index[index]

    def _add_associated_files(self, result: Model, model: Model, file: str) -> None:
        known = {one.info.filename: one.data for one in result.associated_files}
        for one in model.associated_files:
            name = one.info.filename
            if name not in known:
                result.associated_files.append(one)
            elif known[name] != one.data:
                self.log(f"{file}: its associated file {name!r} is dropped: an earlier file has another one")


def _rename(signatures: Sequence[Signature], names: Sequence[str]) -> None:
    if len(names) != len(signatures):
        existing = ", ".join(signature.name for signature in signatures)
        raise UsageError(
            f"--sig-names gives {len(names)} names for {len(signatures)} signatures ({existing})"
        )
    if not all(name.strip() for name in names):
        raise UsageError(f"--sig-names {';'.join(names)!r} has an empty name")
    for signature, name in zip(signatures, names, strict=True):
        signature.name = name.strip()


def _variables(model: Model) -> set[str]:
    """The names of the resource variables of `model`."""
    handles = (node for graph in model.graphs for node in graph if node.op_type == "VAR_HANDLE")
    return {f"{attribute(node, 'container', '')}/{attribute(node, 'sharedName', '')}" for node in handles}


def _make_graph_names_unique(model: Model) -> None:
    """Rename the later of two graphs with one name after its signature, or number it."""
    names: set[str | None] = set()
    for graph in model.graphs:
        if graph.name and graph.name in names:
            signature = next(model.signatures_of(graph), None)
            graph.name = signature.name if signature is not None else graph.name
            stem, count = graph.name, 1
            while graph.name in names:
                graph.name, count = f"{stem}_{count}", count + 1
        names.add(graph.name)


main = MergeCircles.main
