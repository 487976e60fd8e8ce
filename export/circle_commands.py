"""The shell commands that make a Circle model of a checkpoint."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from export.config import CheckpointConfig
from export.graph_specs import GraphSpec, graph_specs
from export.options import GROUPED, CacheForm, WeightsType, check_length
from export.shell import export_command
from o2o.quantization.recipes import NONE
from o2o.rewriting.window_caches import WindowLayers

FUSE = "fuse.attention.py"
FUSE_PREFILL = """
fuse.attention.py < {raw} | transpose.io.kvcache.py > {fused}
"""
FUSE_DECODE = """
fuse.attention.py < decode_.circle \\
  | reshape.io.py input {shapes} \\
  | transpose.io.kvcache.py > decode.circle
"""
MERGE = """
merge.circles.py {graphs} {fuse}\\
  | fuse.bmm_lhs_const.py | downcast.input_ids.py | gc.py {window}{quantize}| bind.weights.py -o model.circle
"""
WINDOW = """| window.kvcache.py """
FUSE_MERGED = """\\
  | fuse.attention.py | fuse.rms_norm.py | fuse.rope.py """
QUANTIZE = """| quantize.weights.py --recipe {recipe} """
LOWER_TO_ONNX = """
lower.onnx.py --form {form} model.circle -o model.onnx
"""
GENAI = "genai"
"""The form of a model for onnxruntime-genai: `ort` with its inputs and outputs."""


def circle_commands(
    checkpoint: Path,
    max_length: int,
    prefill_lengths: Sequence[int] | None,
    cache: CacheForm,
    dtype: WeightsType,
    recipe: str = NONE.name,
    full_caches: bool = False,
) -> list[str]:
    """List the commands that write model.circle into the working folder.

    With `static`, attention is exported as one operator where the model uses transformers' interface for it.
    With `concat`, decode is exported with S - 2 rows and then reshaped to S. For the demo model these shapes
    are [1, 16, 30, 4] and [1, 16, 32, 4].

    Args:
        checkpoint: The checkpoint's folder.
        max_length: S, tokens of context.
        prefill_lengths: T of each prefill; see `export.graph_specs.graph_specs`.
        cache: The form of decode's KV cache.
        dtype: The dtype of stored matrices.
        recipe: A recipe of `o2o.quantization.recipes`.
        full_caches: Let layers with a sliding window have full caches, even where window caches are smaller.

    Returns:
        The commands, in order.

    Raises:
        ModelError: The folder has no usable config.json.
        UsageError: The lengths exclude each other, or the model cannot see S tokens.
    """
    config = CheckpointConfig.read(checkpoint)
    check_length(config, max_length)
    *prefills, _ = graphs = graph_specs(max_length, prefill_lengths, cache)
    with_caches = [spec for spec in prefills if spec.capacity is not None]
    lengths = ",".join(str(spec.tokens) for spec in with_caches)
    attention = ("--attn-implementation", GROUPED) if cache == "static" else ()
    steps = [export_command(checkpoint, max_length, lengths, cache, "--dtype", dtype, *attention)]
    if cache == "concat":
        steps += [FUSE_PREFILL.format(raw=spec.file, fused=_fused_file(spec)) for spec in with_caches]
        steps.append(FUSE_DECODE.format(shapes=reshaping(config, max_length)))
    quantize = QUANTIZE.format(recipe=recipe) * (recipe != NONE.name)
    fuse = FUSE_MERGED * (cache == "static")
    has_window_caches = (
        cache == "static" and not full_caches and window_cache_rows(config, graphs) is not None
    )
    window = WINDOW * has_window_caches
    files = " ".join(map(_fused_file, graphs))
    return [*steps, MERGE.format(graphs=files, fuse=fuse, window=window, quantize=quantize)]


def window_cache_rows(config: CheckpointConfig, graphs: Sequence[GraphSpec]) -> int | None:
    """Return the rows of the caches of layers with a window.

    Args:
        config: The model's configuration.
        graphs: The graphs of the model.

    Returns:
        R; None if full caches are better, or no layer has a window.
    """
    window = config.sliding_window
    if window is None:
        return None
    tokens = max(spec.tokens for spec in graphs if spec.capacity is not None)
    capacity = max(spec.capacity or 0 for spec in graphs)
    of = WindowLayers(config.windowed_layers, window, tokens, capacity)
    return of.default_rows if of.pays else None


def reshaping(config: CheckpointConfig, max_length: int) -> str:
    """Return the flags of reshape.io.py that add two rows to the caches of all layers.

    Args:
        config: The checkpoint's configuration.
        max_length: S, the rows that the caches get.

    Returns:
        One `--by_shape` for each shape; layers may differ in their heads.
    """
    shapes = dict.fromkeys((K, H) for _, K, H in config.attention_layers)
    return " ".join(f"--by_shape [1,{K},{max_length - 2},{H}] [1,{K},{max_length},{H}]" for K, H in shapes)


def lower_to_onnx(form: str, checkpoint: Path) -> str:
    """Return the command that writes model.onnx.

    Args:
        form: A form of `o2o.lower.onnx`, or `GENAI`.
        checkpoint: The checkpoint's folder.

    Returns:
        The command.
    """
    if form == GENAI:
        form = f"ort --genai {shlex.quote(str(checkpoint))}"
    return LOWER_TO_ONNX.format(form=form)


def is_fusing(step: str) -> bool:
    """Check whether a command fuses attention.

    Args:
        step: One of `circle_commands`.

    Returns:
        Whether it begins with fuse.attention.py.
    """
    return step.lstrip().startswith(FUSE)


def _fused_file(spec: GraphSpec) -> str:
    """The file of the graph after fusing."""
    return spec.file.replace("_.circle", ".circle")
