"""Measure all filters on an ONNX decoder of 1.1 billion parameters with 4.4 GB of external data.

    python bench/onnx_scale.py [--folder DIR] [--rounds 3] [--layers 22] [--only gc.py ...]

Makes the decoder, with caches that grow and random weights, then prints a table:

    graph    filters that read and write the graph alone. What they take longer than for one layer, which is
             the time of imports, beside `cat` of the graph
    copy     filters that also write the weights (-o FILE), against `cat` of graph and weights: at most 1.5
    weights  filters that read all weights

Seconds are medians of the rounds. Memory is the peak resident memory of the largest process: at most 200 MB
for `graph` and `copy`. Needs 14 GB of disk.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder
    from o2o.cli import interrupt

    interrupt.exit_on_interrupt("onnx_scale.py")

import argparse
import statistics
from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from bench.scale import Measured, measured
from o2o.cli.arguments import Parser, positive_int
from o2o.cli.command import run

D, F, N, K, H, V = 2048, 5632, 32, 4, 64, 32000
"""Sizes of TinyLlama 1.1B."""
PAGE = 4096
GRAPH = {
    "gc.py": "gc.py < {model} > out.onnx",
    "select.op.py": "select.op.py --to logits < {model} > out.onnx",
    "remove.io.py": "remove.io.py output --keep_by_id 0 < {model} > out.onnx",
    "rename.io.py": "rename.io.py input input_ids=tokens < {model} > out.onnx",
    "rename.io.remove_prefix.py": "rename.io.remove_prefix.py past_ < {model} > out.onnx",
    "reorder.output.py": "reorder.output.py --by_id 0-{last} < {model} > out.onnx",
    "downcast.input_ids.py": "downcast.input_ids.py < {model} > out.onnx",
    "sign.contract.py": "sign.contract.py < {model} > out.onnx",
    "transpose.io.kvcache.py": "sign.contract.py < {model} | transpose.io.kvcache.py > out.onnx",
    "fix.shape.py": "fix.shape.py batch=1 tokens=1 past=64 total=65 < {model} > out.onnx",
    "fix.shape.py --cache-length": "fix.shape.py --cache-length 64 < {model} > static.onnx",
    "bucket.kvcache.py": "bucket.kvcache.py --capacities 16 < static.onnx > out.onnx",
    "fuse.rms_norm.py": "fuse.rms_norm.py < {model} > out.onnx",
    "fuse.rope.py": "fuse.rope.py < {model} > out.onnx",
    "fuse.attention.py": "fuse.attention.py < {model} > out.onnx",
    "fuse.bmm_lhs_const.py": "fuse.bmm_lhs_const.py < {model} > out.onnx",
    "inspect.model.py": "inspect.model.py {model} > out.txt",
    "verify.model.py": "verify.model.py {model} > out.txt",
}
COPY = {
    "gc.py -o": "gc.py {model} -o copy.onnx",
    "rename.io.py -o": "rename.io.py input input_ids=tokens {model} -o copy.onnx",
    "fuse.fc.py -o": "fuse.fc.py {model} -o copy.onnx",
}
WEIGHTS = {
    "merge.circles.py": "merge.circles.py {model} static.onnx --sig-names 'a;b' > out.onnx",
    "diff.model.py": "diff.model.py {model} static.onnx > out.txt || test $? = 1",
    "quantize.weights.py": "quantize.weights.py {model} -o copy.onnx",
    "quantize.weights.py --form standard": "quantize.weights.py --form standard {model} -o copy.onnx",
}
_LAYER = """
    {p}s = Pow ({x}, two)
    {p}m = ReduceMean <axes = [-1]> ({p}s)
    {p}e = Add ({p}m, epsilon)
    {p}r = Sqrt ({p}e)
    {p}d = Div ({x}, {p}r)
    {p}n = Mul ({p}n1, {p}d)
    {p}q2 = MatMul ({p}n, {p}wq)
    {p}q3 = Reshape ({p}q2, q_heads)
    {p}q = Transpose <perm = [0, 2, 1, 3]> ({p}q3)
    {p}k2 = MatMul ({p}n, {p}wk)
    {p}k3 = Reshape ({p}k2, k_heads)
    {p}k = Transpose <perm = [0, 2, 1, 3]> ({p}k3)
    {p}v2 = MatMul ({p}n, {p}wv)
    {p}v3 = Reshape ({p}v2, k_heads)
    {p}v = Transpose <perm = [0, 2, 1, 3]> ({p}v3)
    {rope_q}
    {rope_k}
    present_{i}_key = Concat <axis = 2> (past_{i}_key, {p}kr)
    present_{i}_value = Concat <axis = 2> (past_{i}_value, {p}v)
    {p}k5 = Unsqueeze (present_{i}_key, axis_2)
    {p}kx = Expand ({p}k5, groups)
    {p}kf = Reshape ({p}kx, all_heads)
    {p}v5 = Unsqueeze (present_{i}_value, axis_2)
    {p}vx = Expand ({p}v5, groups)
    {p}vf = Reshape ({p}vx, all_heads)
    {p}kt = Transpose <perm = [0, 1, 3, 2]> ({p}kf)
    {p}sc = MatMul ({p}qr, {p}kt)
    {p}sd = Mul ({p}sc, scale)
    {p}sm = Add ({p}sd, bias)
    {p}sw = Softmax <axis = -1> ({p}sm)
    {p}mx = MatMul ({p}sw, {p}vf)
    {p}mt = Transpose <perm = [0, 2, 1, 3]> ({p}mx)
    {p}mr = Reshape ({p}mt, flat)
    {p}o = MatMul ({p}mr, {p}wo)
    {p}x1 = Add ({x}, {p}o)
    {p}s2 = Pow ({p}x1, two)
    {p}m2 = ReduceMean <axes = [-1]> ({p}s2)
    {p}e2 = Add ({p}m2, epsilon)
    {p}r2 = Sqrt ({p}e2)
    {p}d2 = Div ({p}x1, {p}r2)
    {p}y = Mul ({p}n2, {p}d2)
    {p}g = MatMul ({p}y, {p}wg)
    {p}u = MatMul ({p}y, {p}wu)
    {p}gs = Sigmoid ({p}g)
    {p}gg = Mul ({p}g, {p}gs)
    {p}gu = Mul ({p}gg, {p}u)
    {p}dn = MatMul ({p}gu, {p}wd)
    {p}out = Add ({p}x1, {p}dn)
"""
_ROPE = """
    {p}{t}a = Mul ({p}{t}, cos)
    {p}{t}low = Slice ({p}{t}, zero_1, half, last)
    {p}{t}high = Slice ({p}{t}, half, end, last)
    {p}{t}minus = Neg ({p}{t}high)
    {p}{t}c = Concat <axis = -1> ({p}{t}minus, {p}{t}low)
    {p}{t}b = Mul ({p}{t}c, sin)
    {p}{t}r = Add ({p}{t}a, {p}{t}b)
"""
_MATRICES = {"wq": (D, N * H), "wk": (D, K * H), "wv": (D, K * H), "wo": (N * H, D)}
_MATRICES |= {"wg": (D, F), "wu": (D, F), "wd": (F, D), "n1": (D,), "n2": (D,)}


def decoder(layers: int) -> onnx.ModelProto:
    """Build a decoder in the manner of Optimum, whose weights are not in the message.

    Args:
        layers: Their number.

    Returns:
        The model. Its external data is `model.onnx.data`.
    """
    body, x = "", "embedded"
    for i in range(layers):
        p = f"l{i}_"
        ropes = {f"rope_{t}": _ROPE.format(p=p, t=t) for t in "qk"}
        body += _LAYER.format(p=p, x=x, i=i, **ropes)
        x = f"{p}out"
    caches = [(i, kind) for i in range(layers) for kind in ("key", "value")]
    inputs = ", ".join(f"float[batch, {K}, past, {H}] past_{i}_{kind}" for i, kind in caches)
    outputs = ", ".join(f"float[batch, {K}, total, {H}] present_{i}_{kind}" for i, kind in caches)
    proto = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (int64[batch, tokens] input_ids, int64[batch, total] attention_mask,
           int64[batch, tokens] position_ids, {inputs})
          => (float[batch, tokens, {V}] logits, {outputs})
        <float two = {{2}}, float epsilon = {{1e-6}}, float one = {{1}}, float low = {{-1e9}},
         float scale = {{{H**-0.5}}}, int64[4] q_heads = {{0, 0, {N}, {H}}},
         int64[4] k_heads = {{0, 0, {K}, {H}}}, int64[4] all_heads = {{0, {N}, -1, {H}}},
         int64[5] groups = {{1, 1, {N // K}, 1, 1}}, int64[3] flat = {{0, 0, {N * H}}},
         int64[1] zero_1 = {{0}}, int64[1] half = {{{H // 2}}}, int64[1] end = {{{H}}},
         int64[1] last = {{-1}},
         int64[1] axis_1 = {{1}}, int64[1] axis_2 = {{2}}, int64[2] axes = {{1, 2}}, int64 zero = {{0}},
         int64 step = {{1}}> {{
            embedded = Gather (embedding, input_ids)
            position = Cast <to = 1> (position_ids)
            column = Unsqueeze (position, last)
            angle_ = Mul (column, frequencies)
            angles = Concat <axis = -1> (angle_, angle_)
            cos_ = Cos (angles)
            sin_ = Sin (angles)
            cos = Unsqueeze (cos_, axis_1)
            sin = Unsqueeze (sin_, axis_1)
            mask_shape = Shape (attention_mask)
            total_ = Gather (mask_shape, axis_1)  total_0 = Squeeze (total_)
            keys = Range (zero, total_0, step)
            queries = Unsqueeze (position_ids, last)
            causal_ = LessOrEqual (keys, queries)  causal = Unsqueeze (causal_, axis_1)
            attended_ = Cast <to = 9> (attention_mask)  attended = Unsqueeze (attended_, axes)
            visible = And (causal, attended)  seen = Cast <to = 1> (visible)
            unseen = Sub (one, seen)  bias = Mul (unseen, low)
            {body}
            fs = Pow ({x}, two)  fm = ReduceMean <axes = [-1]> (fs)  fe = Add (fm, epsilon)
            fr = Sqrt (fe)  fd = Div ({x}, fr)  normed = Mul (norm, fd)
            logits = MatMul (normed, head)
        }}""")
    proto.graph.initializer.append(
        helper.make_tensor(
            "frequencies", TensorProto.FLOAT, [H // 2], (1e4 ** (-np.arange(0, H, 2) / H)).tolist()
        )
    )
    shapes = {f"l{i}_{name}": shape for i in range(layers) for name, shape in _MATRICES.items()}
    offset = 0
    for name, shape in {"embedding": (V, D), **shapes, "norm": (D,), "head": (D, V)}.items():
        tensor = proto.graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        size = int(np.prod(shape)) * 4
        for key, item in (("location", "model.onnx.data"), ("offset", offset), ("length", size)):
            tensor.external_data.add(key=key, value=str(item))
        offset += -(-size // PAGE) * PAGE
    return proto


def make(folder: Path, layers: int) -> Path:
    """Write the decoder and random weights.

    Args:
        folder: The folder.
        layers: The number of layers.

    Returns:
        The model's file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    proto = decoder(layers)
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    last = {
        entry.key: int(entry.value)
        for entry in proto.graph.initializer[-1].external_data
        if entry.key != "location"
    }
    size = last["offset"] + last["length"]
    data = folder / "model.onnx.data"
    if not data.exists() or data.stat().st_size != size:
        block = (np.random.default_rng(0).standard_normal(1 << 22) / 50).astype(np.float32).tobytes()
        with open(data, "wb") as file:
            while file.tell() < size:
                file.write(block[: size - file.tell()])
    return folder / "model.onnx"


def _rows(folder: Path, layers: int, rounds: int, chosen: Sequence[str]) -> Iterator[str]:
    large, small = folder / "large", folder / "small"
    make(large, layers)
    (small).mkdir(parents=True, exist_ok=True)
    (small / "model.onnx").write_bytes(decoder(1).SerializeToString())
    for group, scripts in (("graph", GRAPH), ("copy", COPY), ("weights", WEIGHTS)):
        for label, script in scripts.items():
            if chosen and label not in chosen and label.split()[0] not in chosen:
                continue
            text = script.format(model="model.onnx", last=2 * layers)
            plain = {
                "graph": "cat model.onnx > out.onnx",
                "copy": "cat model.onnx model.onnx.data > copy.onnx",
            }
            runs = [measured(text, large) for _ in range(rounds)]
            cats = [measured(plain.get(group, "true"), large) for _ in range(rounds)]
            result = Measured(statistics.median(r.seconds for r in runs), max(r.megabytes for r in runs))
            cat = statistics.median(r.seconds for r in cats)
            note = f"{result.seconds / cat:>6.2f} x cat" if group == "copy" else ""
            if group == "graph":
                imports = measured(script.format(model="model.onnx", last=2), small).seconds
                note = f"{result.seconds - imports:>6.2f} s more than for one layer, cat {cat:.2f} s"
            yield f"{group:<8} {label:<38} {result.seconds:>7.2f} s {result.megabytes:>6.0f} MB  {note}"
            (large / "copy.onnx").unlink(missing_ok=True)
            (large / "copy.onnx.data").unlink(missing_ok=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("onnx-scale"), help="for all files (%(default)s)")
    parser.add_argument("--rounds", type=positive_int, default=3)
    parser.add_argument("--layers", type=positive_int, default=22)
    parser.add_argument("--only", nargs="+", default=[], metavar="FILTER", help="these filters alone")

    def body() -> None:
        args = parser.parse_args(argv)
        for line in _rows(args.folder.absolute(), args.layers, args.rounds, args.only):
            print(line, flush=True)

    return run("onnx_scale.py", body)


if __name__ == "__main__":
    sys.exit(main())
