"""Small TFLite files of a checkpoint, as convert_to_tflite.py makes them, with fewer processes."""

from __future__ import annotations

from pathlib import Path

from export import build_graph
from o2o import formats
from tests.pipelines import run_pipelines

CAPACITY, LENGTH = 32, 8


def write_graphs(directory: Path, folder: Path, attn_implementation: str) -> list[Path]:
    """What `write_tflite` merges; files that are there already serve."""
    prefill, decode = files = [folder / f"{attn_implementation}.{name}" for name in ("prefill", "decode")]
    if not decode.exists():
        formats.save(build_graph.prefill(directory, LENGTH, attn_implementation, capacity=CAPACITY), prefill)
        formats.save(build_graph.decode(directory, CAPACITY, "static", attn_implementation), decode)
    return files


def write_tflite(
    directory: Path,
    file: Path,
    attn_implementation: str = "grouped",
    recipe: str = "none",
    sign: str = "sign.ai_edge.py",
) -> Path:
    """Prefill of LENGTH tokens and decode, onto caches of CAPACITY rows. sign: empty for o2o's own names."""
    graphs = " ".join(map(str, write_graphs(directory, file.parent, attn_implementation)))
    steps = [
        f"merge.circles.py {graphs}",
        "downcast.input_ids.py",
        "gc.py",
        *([f"quantize.weights.py --recipe {recipe}", "fuse.fc.py"] if recipe != "none" else []),
        "lower.litert.py",
        *([sign] if sign else []),
    ]
    run_pipelines([f"{' | '.join(steps)} > {file}"], file.parent)
    return file
