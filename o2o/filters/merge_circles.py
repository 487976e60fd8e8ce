"""`merge.circles.py`."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from o2o.errors import ModelError, UsageError
from o2o.filters.base import Filter
from o2o.formats.fingerprint import fingerprint
from o2o.model import Model, Signature, attribute
from o2o.rewriting.deduplicate_constants import deduplicate_constants
from o2o.rewriting.topological_sort import topological_sort


class MergeCircles(Filter):
    """Merge models into one: all their subgraphs and signatures, every equal constant once.

        prefill.circle: prefill -- weights                      prefill -+
                                               =>   model.circle         +- weights
        decode.circle:  decode --- weights                      decode --+

    Signatures keep their names; a main graph without one gets one that is called after its file. --sig-names
    calls them all anew.
    Constants are compared byte for byte (SHA-256), within and across files. Says what was shared and how
    many bytes that saved.
    State that two files keep in a variable of one name becomes one state, which is said too.
    Refused: two signatures of one name; Circle and TFLite mixed.
    """

    name = "merge.circles.py"
    usage_example = "merge.circles.py prefill.circle decode.circle > model.circle"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--sig-names",
            metavar="A;B",
            help="names for the signatures of the files, in order, separated by ;",
        )

    def add_input(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("files", nargs="+", metavar="MODEL", help="Circle or TFLite files; `-` is stdin")

    def input_files(self, args: argparse.Namespace) -> list[str]:
        return list(args.files)

    def input_fingerprint(self, models: Sequence[Model]) -> str:
        fingerprints = "".join(fingerprint(model) for model in models)
        return f"sha256:{hashlib.sha256(fingerprints.encode()).hexdigest()}"

    def transform(
        self, models: Sequence[Model], args: argparse.Namespace, entry: dict[str, Any] | None
    ) -> Model:
        for model, file in zip(models, args.files, strict=True):
            model.sign("model" if file == "-" else Path(file).stem)
        if args.sig_names is not None:
            _rename([s for model in models for s in model.signatures], args.sig_names.split(";"))
        merged = self.merged(models, args.files)
        for graph in merged.graphs:
            topological_sort(graph)
        if entry is not None:
            merged.history.append(entry)
        return merged

    def merged(self, models: Sequence[Model], files: Sequence[str]) -> Model:
        """One model of `models`, which are used up. Raises ModelError."""
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
                    raise ModelError(f"{clash}: tell them apart with --sig-names")
                owner[signature.name] = file
                result.signatures.append(signature)
            result.graphs += model.graphs
            for weights, told in model.unused.items():
                result.unused.setdefault(weights, {}).update(told)
            self._add_metadata(result, model, file)
            for name in sorted(_variables(model)):
                if name in variable_of:
                    self.log(f"{variable_of[name]} and {file} share the variable {name!r} from now on")
                variable_of[name] = file
            result.history.append({"merged": Path(file).name, "history": model.history})
        _name_apart(result)
        total, shared, saved = deduplicate_constants(result)
        names = ", ".join(signature.name for signature in result.signatures)
        self.log(f"merged {names}: shared {shared} of {total} constants, which saves {saved:,} bytes")
        return result

    def _add_metadata(self, result: Model, model: Model, file: str) -> None:
        known = dict(result.metadata)
        place: dict[int, int] = {}  # where an entry of `model` is now
        for index, (name, data) in enumerate(model.metadata):
            if name in known and known[name] != data:
                self.log(f"{file}: its metadata {name!r} differs from that of an earlier file, which is kept")
                continue
            if name not in known:
                result.metadata.append((name, data))
            place[index] = result.metadata.index((name, data))
        for graph in model.graphs:
            fields = graph.meta.get("fields", {})
            if (index := fields.pop("debugMetadataIndex", -1)) in place:
                fields["debugMetadataIndex"] = place[index]


def _rename(signatures: Sequence[Signature], names: Sequence[str]) -> None:
    if len(names) != len(signatures):
        there = ", ".join(signature.name for signature in signatures)
        raise UsageError(f"--sig-names gives {len(names)} names for {len(signatures)} signatures ({there})")
    if not all(name.strip() for name in names):
        raise UsageError(f"--sig-names {';'.join(names)!r} has an empty name in it")
    for signature, name in zip(signatures, names, strict=True):
        signature.name = name.strip()


def _variables(model: Model) -> set[str]:
    """The names of the resource variables that `model` keeps state in."""
    handles = (node for graph in model.graphs for node in graph if node.op_type == "VAR_HANDLE")
    return {f"{attribute(node, 'container', '')}/{attribute(node, 'sharedName', '')}" for node in handles}


def _name_apart(model: Model) -> None:
    """No two graphs of one name: the later is called after its signature, or numbered."""
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
