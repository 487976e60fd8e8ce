"""All graphs of a package, exported in parallel: checks, estimates, child processes, files."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from export.config import CheckpointConfig
from export.graph_cache import GraphCache
from export.graph_groups import graph_groups
from export.graph_specs import GraphSpec, graph_specs
from export.hub import resolve
from export.options import ExportOptions
from export.package_files import copy_package_files
from export.processes import run_parallel, signals_interrupt
from export.resources import Needs, check_disk, estimate_needs, format_bytes, processes_that_fit
from export.staging import publish, staging_folder
from o2o.cli.progress import progress
from o2o.cli.text import counted, listed
from o2o.cores import cores
from o2o.weights.checkpoint import Checkpoint, adapter_file, open_checkpoint


def export_graphs(model: str, folder: Path, options: ExportOptions) -> None:
    """Export a checkpoint's graphs and copy its tokenizer's files. All files appear, or none.

    Args:
        model: The checkpoint's folder, or its id on the Hugging Face hub.
        folder: Where to write; created if it does not exist.
        options: What to export, and how.

    Raises:
        UsageError: Options exclude each other, or the model excludes one.
        ModelError: The checkpoint is incomplete, or its architecture cannot be exported.
        O2oError: Disk or memory does not suffice.
    """
    started = time.monotonic()
    directory = resolve(model)
    checkpoint = open_checkpoint(directory)
    graphs = graph_specs(options.max_length, options.prefill_lengths, options.cache)
    config = CheckpointConfig.read(directory)
    options.check(config)
    needs = estimate_needs(
        checkpoint.tensors, config.layers, len(graphs), options.dtype, options.weights == "embed"
    )
    _log_estimate(checkpoint, config, graphs, options, needs)
    if adapter := adapter_file(checkpoint.directory):
        _log(f"note: {adapter} is an adapter (LoRA) beside the weights: --adapter {directory} merges it")
    check_disk(folder, needs.graphs, counted(len(graphs), "graph"))
    processes = processes_that_fit(needs.memory, min(options.processes or cores(), len(graphs)))
    with signals_interrupt(SystemExit), staging_folder(folder) as staged:
        lines = _export(graphs, processes, directory, staged, options)
        publish(staged, folder, [spec.file for spec in graphs])
    copy_package_files(folder, directory)
    for line in dict.fromkeys(lines):
        _log(line)
    size = sum((folder / spec.file).stat().st_size for spec in graphs)
    files = listed([spec.file for spec in graphs])
    place = "" if folder == Path() else f" into {folder}"
    _log(f"wrote {files}{place}, {format_bytes(size)} in {time.monotonic() - started:.1f} s")


def _export(
    graphs: Sequence[GraphSpec], processes: int, directory: Path, folder: Path, options: ExportOptions
) -> list[str]:
    """Export all graphs, in this process or in children, which give their memory back. Lines for the user."""
    arguments = (
        directory,
        folder,
        options.attn_implementation,
        options.weights,
        options.dtype,
        options.debug,
        options.strict,
    )
    groups = graph_groups(graphs)
    processes = 1 if is_cached(directory, options) else min(processes, len(groups))
    with progress("export", len(groups), "graph") as advance:  # those that are traced
        if processes > 1:
            results = run_parallel(
                [partial(group.export, *arguments) for group in groups], processes, advance
            )
            return [line for result in results for line in result]
        lines: list[str] = []
        for group in groups:
            lines += group.export(*arguments)
            advance(1)
        return lines


def is_cached(directory: Path, options: ExportOptions) -> bool:
    """Check whether an export needs no trace.

    Args:
        directory: The checkpoint's folder.
        options: What to export, and how.

    Returns:
        Whether the cache has all graphs that would be traced.

    Raises:
        UsageError: Options exclude each other.
        ModelError: The folder has no usable checkpoint.
    """
    groups = graph_groups(graph_specs(options.max_length, options.prefill_lengths, options.cache))
    cache = GraphCache(open_checkpoint(directory))
    return all(group.is_cached(cache, options.attn_implementation) for group in groups)


def _log_estimate(
    checkpoint: Checkpoint,
    config: CheckpointConfig,
    graphs: Sequence[GraphSpec],
    options: ExportOptions,
    needs: Needs,
) -> None:
    dtypes = listed(sorted({tensor.dtype for tensor in checkpoint.tensors.values()}))
    _log(
        f"{checkpoint.directory}: {config.model_type}, {config.layers} layers, "
        f"{needs.parameters:,} parameters, {format_bytes(needs.stored)} of {dtypes}"
    )
    _log(
        f"{listed([spec.signature for spec in graphs])} of {options.max_length} tokens: about "
        f"{format_bytes(needs.graphs)} on disk ({format_bytes(needs.bound)} as one model with its weights), "
        f"{format_bytes(needs.memory)} of memory for each process"
    )


def _log(line: str) -> None:
    print(f"export: {line}", file=sys.stderr)
