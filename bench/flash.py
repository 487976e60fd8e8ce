"""What attention takes on LiteRT, all scores at a time and in blocks: memory, and time as a ratio.

    python bench/flash.py [--tokens 512,1024,2048] [--shape tinyllama-1.1b] [--rounds 3]
    python bench/flash.py --tokens 64,128,256 --capacity 1024 --position 512

One layer's attention of that shape by itself (queries, keys and values in), each way in a process of its own.
The caches hold as many tokens as there are queries, or --capacity, and these stand at 0 or at --position.
Prints, for each number of tokens,

    standard, flash   MB that attention takes beyond its inputs and outputs: the most memory of the process
                      (its own and shared, so LiteRT's arena and XNNPACK's workspace, not mapped files) while
                      it runs, less that of a graph that only transposes the queries
    less              the ratio of the two
    time              flash by standard, CPU seconds of one run, the median of interleaved rounds

Then prefill of a whole model of that shape, --layers deep, as convert_to_tflite.py makes it with and without
`--use_flash_attention`: MB of the process's own memory at the most, all but the weights, which are mapped.
Each layer more takes its caches more; the matrices behind attention need memory, too.

Blocks are those that `--use_flash_attention` takes by default (`adaptive_blocks` of
`o2o.operators.causal_attention`), or --blocks Q,KV.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder
    from o2o.cli import interrupt

    interrupt.exit_on_interrupt("flash.py")

import argparse
import json
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from o2o.cli.arguments import Parser
from o2o.cli.command import run
from o2o.operators.causal_attention import Blocks

ROOT = Path(__file__).resolve().parents[1]
FORMS = ("nothing", "standard", "flash")


def save(form: str, T: int, S: int, shape: tuple[int, int, int], blocks: Blocks | None, file: Path) -> None:
    """A TFLite file: q [1, N, T, H], k and v [1, K, S, H], position -> y [1, T, N, H]."""
    from o2o import formats
    from o2o.lower.litert.lowering import lower
    from o2o.model import CUSTOM_DOMAIN, DOMAIN, Model, Signature
    from o2o.operators import causal_attention
    from o2o.rewriting.builder import Builder

    N, K, H = shape

    def value(name: str, shape: tuple[int, ...], dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))

    q, k, v = value("q", (1, N, T, H)), value("k", (1, K, S, H)), value("v", (1, K, S, H))
    position = value("position", (1,), ir.DataType.INT32)
    graph = ir.Graph([q, k, v, position], [], nodes=[], opset_imports={DOMAIN: 1})
    op = Builder(graph)  # before and behind attention there are operators, as in a model
    q = op.node("MUL", [q, op.constant(1.0, "one", np.float32)], (1, N, T, H), name="queries")
    if form == "nothing":
        attended = op.transpose(q, (0, 2, 1, 3), "attended")
    else:
        attended = value("attended", (1, T, N, H))
        node = ir.Node(CUSTOM_DOMAIN, causal_attention.NAME, [q, k, v, position], outputs=[attended])
        sizes = None if form == "standard" else blocks or causal_attention.adaptive_blocks(T)
        node.meta["fields"] = {
            "customOptions": np.frombuffer(causal_attention.pack(H**-0.5, sizes), np.uint8)
        }
        node.meta["options"] = None
        graph.append(node)
    y = op.node("NEG", [attended], (1, T, N, H), name="y")
    graph.outputs.append(y)
    ends = {value.name or "": value for value in graph.inputs}
    formats.save(lower(Model("circle", [graph], [Signature("main", graph, ends, {"y": y})])), file)


def measure(file: str, position: int, runs: int, packed: str = "") -> dict[str, float]:
    """Run the first signature of `file`: MB at the most, CPU seconds of a run.

    packed: the file for XNNPACK's packed weights; none for a model without weights.
    """
    from o2o.cli.silence_stderr import quiet

    with quiet():
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
        name, ends = next(iter(model.get_signature_list().items()))
        inputs = [model.create_input_buffer_by_name(name, end) for end in ends["inputs"]]
        outputs = [model.create_output_buffer_by_name(name, end) for end in ends["outputs"]]
        details = model.get_input_tensor_details(name)
        for end, buffer in zip(ends["inputs"], inputs, strict=True):
            buffer.write(_numbers(end, details[end]["shape"], position))
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
    """MB of this process that are no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return (
        sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem"))) * 1024 / 1e6
    )


def in_process(file: Path, position: int = 0, runs: int = 5, packed: str = "") -> dict[str, float]:
    code = (
        "import sys, json; from bench.flash import measure;"
        "print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])))"
    )
    command = [sys.executable, "-c", code, str(file), str(position), str(runs), packed]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def whole_models(shape: str, layers: int, lengths: list[int], folder: Path) -> Iterator[str]:
    """A line for each number of tokens."""
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
            in_process(file, 0, 1, str(packed))  # packs
            sizes[form] = in_process(file, 0, 1, str(packed))["megabytes"]
            packed.unlink()
        yield (
            f"{tokens:>6} {sizes['standard']:>9.1f} MB {sizes['flash']:>7.1f} MB "
            f"{sizes['standard'] / sizes['flash']:>6.1f}x"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for those of the process.

    Returns:
        The exit code.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="512,1024,2048")
    parser.add_argument("--capacity", metavar="S", type=int)
    parser.add_argument("--position", metavar="P", type=int, default=0)
    parser.add_argument("--shape", default="tinyllama-1.1b")
    parser.add_argument("--blocks", metavar="Q,KV", type=Blocks.parse)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=2, help="of a whole model; 0 for none (%(default)s)")
    return run("flash.py", lambda: _run(parser.parse_args(argv)))


def _run(args: argparse.Namespace) -> None:
    from bench.make_checkpoint import SHAPES

    _, _, _, N, K, H, _, _ = SHAPES[args.shape]
    print(f"one layer's attention, {N} heads over {K}, each of {H}")
    print(f"{'tokens':>6} {'standard':>12} {'flash':>10} {'less':>7}   time (spread)")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        lengths = [int(tokens) for tokens in args.tokens.split(",")]
        for tokens in lengths:
            files = {form: Path(folder) / f"{form}.tflite" for form in FORMS}
            for form, file in files.items():
                save(form, tokens, args.capacity or tokens, (N, K, H), args.blocks, file)
            runs = [
                {form: in_process(file, args.position) for form, file in files.items()}
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
            for line in whole_models(args.shape, args.layers, lengths, Path(folder)):
                print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
