"""`pack.litertlm.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from o2o import formats, streams
from o2o.cli.text import counted, listed
from o2o.contract import Layout
from o2o.errors import ModelError, UsageError
from o2o.filters.base import Filter
from o2o.filters.transpose_io_kvcache import transposed
from o2o.litertlm.container import MODEL_TYPE, PREFILL_DECODE, Contents, plan_bundle
from o2o.litertlm.package_files import has_vocabulary, sections_of
from o2o.model import Model, Signature, shape_of
from o2o.rewriting.cache_layout import transpose_caches
from o2o.rewriting.dead_code_elimination import remove_dead_constants
from o2o.rewriting.simplify_layout_ops import simplify_layout_ops
from o2o.signatures import buckets_of, capacity_of, decode_of, prefills_of

if TYPE_CHECKING:
    from o2o.check.interface import Expected

LAYOUT: Layout = "BNTH"
"""LiteRT-LM takes dimension 2 of a cache as its tokens."""
MODEL = "model.tflite"


class PackLitertlm(Filter):
    """Pack a TFLite model, its tokenizer and its configuration into one file for LiteRT-LM.

        model.tflite: prefill_64, prefill_128, decode         model.litertlm: LlmMetadata
                      kv_cache_k_0 [1,S,K,H]             =>                   tokenizer
        tokenizer.json, generation_config.json, ...                           configuration files
                                                                              TFLite: kv_cache_k_0 [1,K,S,H]

    The model has the signatures of AI Edge's generative models, as `sign.ai_edge.py` makes them. Its KV
    caches are transposed to [1,K,S,H]. The metadata gets the begin and end tokens, the chat template, the
    sampler of `generation_config.json` and the length of the context. LiteRT-LM runs and serves the file, and
    `o2o run` runs it. A package's folder stands for its model, and is the folder of the tokenizer.
    The input is streamed, as by every filter. The same input gives the same bytes.
    Refused: a model with other signatures or without a prefill, and a folder without tokenizer.
    """

    name = "pack.litertlm.py"
    purpose = "Convert to another format or runtime"
    usage_example = "pack.litertlm.py my-package -o model.litertlm"
    input_formats = ("tflite",)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--tokenizer",
            metavar="DIR",
            help="folder of the tokenizer and the configuration (default: the folder of the model)",
        )

    def check_arguments(self, args: argparse.Namespace) -> None:
        file = Path(args.file or "-")
        if file.is_dir():
            args.tokenizer = args.tokenizer or str(file)
            if not (file / MODEL).is_file():
                raise UsageError(f"{file}: this folder has no {MODEL}: convert with --format tflite")
        if args.tokenizer is None and str(file) == "-":
            raise UsageError("the model comes from stdin: give the folder of its tokenizer with --tokenizer")
        if args.tokenizer is None and not file.exists():
            raise UsageError(f"{file}: no such file or folder")
        folder = Path(args.tokenizer or file.parent)
        if not folder.is_dir():
            raise UsageError(f"--tokenizer {folder}: no such folder")
        if not has_vocabulary(folder):
            raise UsageError(
                f"{folder} has no tokenizer.json and no tokenizer.model: give the folder of the tokenizer "
                "with --tokenizer"
            )
        args.tokenizer = str(folder)

    def input_files(self, args: argparse.Namespace) -> list[str]:
        (file,) = super().input_files(args)
        return [str(Path(file) / MODEL) if Path(file).is_dir() else file]

    def transform(
        self, models: Sequence[Model], args: argparse.Namespace, entry: dict[str, Any] | None
    ) -> Model:
        (model,) = models
        decode = _check_signatures(model)
        vocab_size = shape_of(decode.outputs["logits"])[-1]
        self._sections, notes = sections_of(Path(args.tokenizer), capacity_of(decode), vocab_size)
        result = super().transform(models, args, entry)
        for note in notes:
            self.log(note)
        return result

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        for signature in model.signatures:
            transpose_caches(model, signature.graph, LAYOUT)
            simplify_layout_ops(model, signature.graph)  # a TRANSPOSE of a whole cache and its inverse
            remove_dead_constants(signature.graph)
        prefills = [signature.name for signature in prefills_of(model)]
        self.log(f"{listed(prefills)}, decode: {counted(capacity_of(decode_of(model)), 'token')} of context")

    def expected(self, models: Sequence[Model], args: argparse.Namespace) -> Expected:
        return transposed(models, LAYOUT)

    def write(self, result: Model, output: str | None, sources: Sequence[streams.Source]) -> None:
        assert isinstance(result, Model)
        model = formats.plan(result)
        contents = Contents(
            "TFLiteModel",
            model.size,
            lambda sink: model.write(sink, consume_sources=True),
            {MODEL_TYPE: PREFILL_DECODE},
        )
        bundle = plan_bundle({"producer": "o2o"}, [*self._sections, contents])
        with streams.open_output(output, bundle.size) as sink:
            bundle.write(sink)
            for source in sources:
                source.finish()


def _check_signatures(model: Model) -> Signature:
    """Return decode. Raises ModelError for signatures that LiteRT-LM does not know."""
    names = [signature.name for signature in model.signatures]
    for signature in model.signatures:
        if not {"tokens", "input_pos", "kv_cache_k_0"} <= signature.inputs.keys():
            raise ModelError(
                f"the signature {signature.name} does not take tokens, input_pos, kv_cache_k_0, ...: run "
                "sign.ai_edge.py first"
            )
    decode = decode_of(model)
    if decode.name != "decode" or "logits" not in decode.outputs or not prefills_of(model):
        raise ModelError(f"it has no prefill and decode, only {listed(names)}: run sign.ai_edge.py first")
    if buckets := [signature.name for signature in buckets_of(model)]:
        raise ModelError(
            f"LiteRT-LM has no use for decode signatures of other capacities, {listed(buckets)}: convert "
            "without buckets"
        )
    return decode


main = PackLitertlm.main
