"""Compare standard and blocked (flash) attention on LiteRT: memory, and relative time.

    python bench/flash.py [--tokens 512,1024,2048] [--shape tinyllama-1.1b] [--rounds 3]
    python bench/flash.py --tokens 64,128,256 --capacity 1024 --position 512

The graph is one layer's attention of a shape: queries, keys and values in. Each form runs in its own process.
The caches have as many rows as there are queries, or --capacity. The queries start at position 0, or
--position. Prints for each number of tokens

    standard, flash   MB of attention in addition to its inputs and outputs: the peak memory of the process
                      while it runs, less the peak of a graph that only transposes the queries. It includes
                      LiteRT's arena and XNNPACK's workspace, but no mapped files
    less              the ratio of the two
    time              flash relative to standard: CPU seconds of a run, median of interleaved rounds

Then follows the prefill of a whole model of that shape with --layers layers, with and without
`--use_flash_attention`. Printed are peak MB of the process without the weights, which are mapped. Each
additional layer adds its caches; the matrices after attention need memory, too.

Block sizes are the defaults of `--use_flash_attention` (`o2o.operators.core_attention.adaptive_blocks`), or
--blocks Q,KV. `o2o.lower.litert.attention.fast_blocks` has the sizes that are fastest.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder
    from o2o.cli import interrupt

    interrupt.exit_on_interrupt("flash.py")

import argparse
import atexit
import json
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from o2o.cli.arguments import Parser, number_list
from o2o.cli.command import run
from o2o.operators.core_attention import FlashBlockSizes

ROOT = Path(__file__).resolve().parents[1]
FORMS = ("nothing", "standard", "flash")


def _save(
    form: str, T: int, S: int, shape: tuple[int, int, int], blocks: FlashBlockSizes | None, file: Path
) -> None:
    """Write a TFLite file: q [1, N, T, H], k and v [1, K, S, H], position -> y [1, T, N, H]."""
    from o2o import formats
    from o2o.lower.litert import lower_to_litert
    from o2o.model import DOMAIN, Model, Signature
    from o2o.operators.core_attention import CoreAttention, adaptive_blocks
    from o2o.rewriting.builder import Builder

    N, K, H = shape

    def value(name: str, shape: tuple[int, ...], dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))

    q, k, v = value("q", (1, N, T, H)), value("k", (1, K, S, H)), value("v", (1, K, S, H))
    position = value("position", (1,), ir.DataType.INT32)
    graph = ir.Graph([q, k, v, position], [], nodes=[], opset_imports={DOMAIN: 1})
    op = Builder(graph)  # operators before and after attention, as in a model
    q = op.node("MUL", [q, op.constant(1.0, "one", np.float32)], (1, N, T, H), name="queries")
    if form == "nothing":
        attended = op.transpose(q, (0, 2, 1, 3), "attended")
    else:
        sizes = None if form == "standard" else blocks or adaptive_blocks(T)
        node = CoreAttention(q, k, v, position, H**-0.5, blocks=sizes).build("attended")
        graph.append(node)
        attended = node.outputs[0]
    y = op.node("NEG", [attended], (1, T, N, H), name="y")
    graph.outputs.append(y)
    inputs = {value.name or "": value for value in graph.inputs}
    formats.save(
        lower_to_litert(Model("circle", [graph], [Signature("main", graph, inputs, {"y": y})])), file
    )


def measure(file: str, position: int, runs: int, packed: str = "") -> dict[str, float]:
    """Run the first signature of a file.

    Args:
        file: A TFLite file.
        position: The first position.
        runs: The number of runs.
        packed: The file for XNNPACK's packed weights; "" for a model without weights.

    Returns:
        Peak MB while it runs, and CPU seconds of the fastest run.
    """
    from o2o.cli.silence_stderr import silence_stderr_forever, silenced_stderr

    atexit.register(silence_stderr_forever)  # LiteRT logs when a model is freed
    with silenced_stderr():
        from ai_edge_litert.compiled_model import CompiledModel
        from ai_edge_litert.options import CpuOptions, HardwareAccelerator, Options

        before, most, done = _own_memory(), [0.0], threading.Event()

        def watch() -> None:
            while not done.wait(0.0005):
                most[0] = max(most[0], _own_memory())

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        cpu = CpuOptions(num_threads=2, xnnpack_weight_cache_path=packed)
        model = CompiledModel.from_file(file, options=Options(HardwareAccelerator.CPU, cpu))
        signature, names = next(iter(model.get_signature_list().items()))
        inputs = [model.create_input_buffer_by_name(signature, name) for name in names["inputs"]]
        outputs = [model.create_output_buffer_by_name(signature, name) for name in names["outputs"]]
        details = model.get_input_tensor_details(signature)
        for name, buffer in zip(names["inputs"], inputs, strict=True):
            buffer.write(_numbers(name, details[name]["shape"], position))
        seconds = []
        for _ in range(runs):
            started = time.process_time()
            model.run_by_index(0, inputs, outputs)
            seconds.append(time.process_time() - started)
        done.set()
        watcher.join()
    return {"megabytes": most[0] - before, "seconds": min(seconds)}


def _numbers(name: str, shape: tuple[int, ...], position: int) -> np.ndarray:
    match name:
        case "position" | "input_pos":
            return position + np.arange(*shape, dtype=np.int32)
        case "tokens":
            return np.ones(shape, np.int32)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _own_memory() -> float:
    """MB of this process without mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return (
        sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem"))) * 1024 / 1e6
    )


def _in_process(file: Path, position: int = 0, runs: int = 5, packed: str = "") -> dict[str, float]:
    """`measure` in a new process."""
    code = (
        "import sys, json; from bench.flash import measure; file, position, runs, packed = sys.argv[1:]; "
        "print(json.dumps(measure(file, int(position), int(runs), packed)))"
    )
    command = [sys.executable, "-c", code, str(file), str(position), str(runs), packed]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _whole_models(shape: str, layers: int, lengths: list[int], folder: Path) -> Iterator[str]:
    """A line of text for each number of tokens."""
    make = ["bench/make_checkpoint.py", str(folder / "model"), "--shape", shape, "--layers", str(layers)]
    subprocess.run([sys.executable, *make, "--vocab", "2048"], cwd=ROOT, check=True)
    for tokens in lengths:
        sizes = {}
        for form, flash in (("standard", "false"), ("flash", "true")):
            file, packed = folder / f"{form}.tflite", folder / "packed"
            flags = {
                "checkpoint_path": folder / "model",
                "prefill_seq_lens": tokens,
                "kv_cache_max_len": tokens,
                "quantize": "false",
                "use_flash_attention": flash,
                "output_path": file,
            }
            convert = [
                "tinyllama/convert_to_tflite.py",
                *(f"--{name}={value}" for name, value in flags.items()),
            ]
            subprocess.run([sys.executable, *convert], cwd=ROOT, stderr=subprocess.DEVNULL, check=True)
            _in_process(file, 0, 1, str(packed))  # packs
            sizes[form] = _in_process(file, 0, 1, str(packed))["megabytes"]
            packed.unlink()
        yield (
            f"{tokens:>6} {sizes['standard']:>9.1f} MB {sizes['flash']:>7.1f} MB "
            f"{sizes['standard'] / sizes['flash']:>6.1f}x"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=number_list, default="512,1024,2048")
    parser.add_argument("--capacity", metavar="S", type=int)
    parser.add_argument("--position", metavar="P", type=int, default=0)
    parser.add_argument("--shape", default="tinyllama-1.1b")
    parser.add_argument("--blocks", metavar="Q,KV", type=FlashBlockSizes.parse)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=2, help="of the whole model; 0 for none (default: 2)")
    return run("flash.py", lambda: _run(parser.parse_args(argv)))


def _run(args: argparse.Namespace) -> None:
    from bench.make_checkpoint import SHAPES

    _, _, _, N, K, H, _, _ = SHAPES[args.shape]
    print(f"one layer's attention, {N} heads over {K}, each of {H}")
    print(f"{'tokens':>6} {'standard':>12} {'flash':>10} {'less':>7}   time (spread)")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for tokens in args.tokens:
            files = {form: Path(folder) / f"{form}.tflite" for form in FORMS}
            for form, file in files.items():
                _save(form, tokens, args.capacity or tokens, (N, K, H), args.blocks, file)
            runs = [
                {form: _in_process(file, args.position) for form, file in files.items()}
                for _ in range(args.rounds)
            ]
            sizes = {form: statistics.median(run[form]["megabytes"] for run in runs) for form in FORMS}
            times = sorted(run["flash"]["seconds"] / run["standard"]["seconds"] for run in runs)
            standard, flash = (sizes[form] - sizes["nothing"] for form in FORMS[1:])
            print(
                f"{tokens:>6} {standard:>9.1f} MB {flash:>7.1f} MB {standard / flash:>6.1f}x   "
                f"{statistics.median(times):.2f} ({times[0]:.2f} to {times[-1]:.2f})",
                flush=True,
            )
        if args.layers:
            print(f"prefill of a model of {args.layers} layers")
            for line in _whole_models(args.shape, args.layers, args.tokens, Path(folder)):
                print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
