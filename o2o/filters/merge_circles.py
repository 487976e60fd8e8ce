"""`merge.circles.py`."""

from __future__ import annotations

import argparse
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from o2o.errors import ModelError, UsageError
from o2o.filters.base import Filter
from o2o.formats.constants import bytes_in_memory, constant, storage_key
from o2o.model import Model, Signature, attribute, shape_of


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

    def files(self, args: argparse.Namespace) -> list[str]:
        return list(args.files)

    def combine(self, models: Sequence[Model], args: argparse.Namespace) -> Model:
        for model, file in zip(models, args.files, strict=True):
            model.sign("model" if file == "-" else Path(file).stem)
        if args.sig_names is not None:
            _rename([s for model in models for s in model.signatures], args.sig_names.split(";"))
        return self.merged(models, args.files)

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
            self._add_metadata(result, model, file)
            for name in sorted(_variables(model)):
                if name in variable_of:
                    self.say(f"{variable_of[name]} and {file} share the variable {name!r} from now on")
                variable_of[name] = file
            result.history.append({"merged": Path(file).name, "history": model.history})
        _name_apart(result)
        fingerprints = "".join(model.fingerprint for model in models)
        result.fingerprint = f"sha256:{hashlib.sha256(fingerprints.encode()).hexdigest()}"
        total, shared, saved = share_constants(result)
        names = ", ".join(signature.name for signature in result.signatures)
        self.say(f"merged {names}: shared {shared} of {total} constants, which saves {saved:,} bytes")
        return result

    def _add_metadata(self, result: Model, model: Model, file: str) -> None:
        known = dict(result.metadata)
        place: dict[int, int] = {}  # where an entry of `model` is now
        for index, (name, data) in enumerate(model.metadata):
            if name in known and known[name] != data:
                self.say(f"{file}: its metadata {name!r} differs from that of an earlier file, which is kept")
                continue
            if name not in known:
                result.metadata.append((name, data))
            place[index] = result.metadata.index((name, data))
        for graph in model.graphs:
            fields = graph.meta.get("fields", {})
            if (index := fields.pop("debugMetadataIndex", -1)) in place:
                fields["debugMetadataIndex"] = place[index]

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        """Merging is reading: there is nothing left to do."""


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


def share_constants(model: Model) -> tuple[int, int, int]:
    """Let equal constants of `model` share their bytes: how many there are, were shared, and bytes saved.

    Bytes count, not dtype and shape: a buffer may well be a vector here and a matrix there. Only constants
    of a size that occurs twice are read at all.
    """
    by_size: dict[int, list[ir.Value]] = defaultdict(list)
    stored: dict[tuple[int, int], ir.Value] = {}
    for value in _constants(model):
        assert value.const_value is not None
        if storage_key(value.const_value) not in stored:
            stored[storage_key(value.const_value)] = value
            by_size[value.const_value.nbytes].append(value)
    original: dict[tuple[int, int], np.ndarray] = {}
    shared = saved = 0
    for size, values in by_size.items():
        first: dict[bytes, np.ndarray] = {}
        for value in values if len(values) > 1 and size else ():
            tensor = value.const_value
            assert tensor is not None
            raw = bytes_in_memory(tensor)
            raw = np.frombuffer(tensor.tobytes(), np.uint8) if raw is None else raw
            digest = hashlib.sha256(raw.data).digest()
            if digest in first:
                original[storage_key(tensor)] = first[digest]
                shared, saved = shared + 1, saved + size
            else:
                first[digest] = raw
    for value in _constants(model):
        tensor = value.const_value
        assert tensor is not None
        raw_ = original.get(storage_key(tensor))
        if raw_ is not None:
            encoded = tensor.dtype != value.dtype
            shape = tuple(tensor.shape.numpy()) if encoded else shape_of(value)
            value.const_value = constant(raw_, tensor.dtype, shape, value.name or "")
    return len(stored), shared, saved


def _constants(model: Model) -> Iterator[ir.Value]:
    for graph in model.graphs:
        for value in (*graph.initializers.values(), *graph.meta.get("loose", ())):
            if value.const_value is not None:
                yield value


main = MergeCircles.main
