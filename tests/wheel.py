"""Test the wheel: build it, install it into empty environments, and use it outside the checkout.

    python -m tests.wheel --pythons 3.11,3.12,3.13 --extras base,export,onnx-runtime,onert,plot,serve,dev

Each extra of each Python gets an environment of its own. The first `export` environment converts a tiny
random checkpoint to packages; the others run these and must generate the same tokens. Needs the network, so
that it is no part of `make test`: `make wheel` runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from o2o.cli.arguments import Parser, name_list
from o2o.cli.command import run
from o2o.errors import O2oError

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "tinyllama" / "demo" / "checkpoint"
PYTHONS = ["3.11", "3.12", "3.13"]
WITHOUT_ONERT = {"3.13"}  # onert has no wheel for it: the extra installs nothing there
FORMATS = {"circle": [], "tflite": ["--quantize", "dynamic_int8"], "onnx": []}
NEEDS_EXPORT = "o2o convert: this command needs the export extra: pip install 'o2o[export]'\n"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 2048,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}


class Failed(O2oError):
    """A check failed; the message names the command and what it printed."""


def write_checkpoint(folder: Path) -> Path:
    """Write a random Llama with the demo model's tokenizer. Needs no torch."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    width, inner, kv = CONFIG["hidden_size"], CONFIG["intermediate_size"], 2 * 8
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (2048, width),
        "model.norm.weight": (width,),
    }  # type: ignore[dict-item]
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        for name, shape in {
            "self_attn.q_proj": (width, width),
            "self_attn.k_proj": (kv, width),
            "self_attn.v_proj": (kv, width),
            "self_attn.o_proj": (width, width),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
            "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
        }.items():
            shapes[f"{prefix}{name}.weight"] = shape  # type: ignore[assignment]
    tensors = {
        name: (np.ones(shape) if len(shape) == 1 else rng.normal(0, 0.2, shape)).astype(np.float32)
        for name, shape in shapes.items()
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for path in DEMO.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


def build_wheel(folder: Path) -> Path:
    """Build the wheel and check what it contains."""
    source = (
        folder / "source"
    )  # a copy: setuptools writes into the folder, and packs what an earlier build left
    source.mkdir()
    for name in ("export", "o2o", "runtime_py", "tinyllama"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.circle"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    execute([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, source], folder)
    (wheel,) = folder.glob("o2o-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
        scripts = archive.read(next(name for name in names if name.endswith("/entry_points.txt"))).decode()
    expect("License-Expression: Apache-2.0" in metadata, "the metadata name the licence")
    expect(any(name.endswith("licenses/LICENSE") for name in names), "the wheel has the licence's text")
    expect(
        any(name.endswith("demo/checkpoint/config.json") for name in names), "the wheel has the demo model"
    )
    for section in ("console_scripts", "o2o.verbs.build", "o2o.verbs.measure"):
        expect(f"[{section}]" in scripts, f"the wheel has entry points {section}")
    top = {name.partition("/")[0] for name in names}
    expect(
        top <= {"export", "o2o", "runtime_py", "tinyllama", wheel.name.partition("-py3")[0] + ".dist-info"},
        f"only the packages: {sorted(top)}",
    )
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, {len(names)} files", flush=True)
    return wheel


@dataclass
class Environment:
    """A virtual environment with the wheel and one extra, and an empty folder to work in."""

    python: str
    extra: str
    folder: Path
    packages: Path
    checkpoint: Path
    bin: Path = field(init=False)

    def __post_init__(self) -> None:
        self.bin = self.folder / "venv" / "bin"
        self.work = self.folder / "work"
        self.work.mkdir(parents=True)

    def install(self, wheel: Path, torch: str) -> None:
        """Create the environment and install the wheel with the extra."""
        execute([interpreter(self.python), "-m", "venv", self.folder / "venv"], self.folder)
        pip = [self.bin / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if self.extra in ("export", "dev"):
            execute([*pip, *shlex.split(torch)], self.folder)
        execute([*pip, f"{wheel}[{self.extra}]" if self.extra != "base" else wheel], self.folder)

    def run(self, *command: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run one of its commands in the empty folder."""
        program, *arguments = command
        return execute([self.bin / str(program), *arguments], self.work, code=code, path=self.bin)

    def tokens(self, package: str, *flags: str) -> str:
        """Generate with a package; return the line of tokens."""
        done = self.run("o2o", "run", self.packages / package, "--max-new-tokens", 8, *flags)
        return next(line for line in done.stdout.splitlines() if line.startswith("generated:"))

    def expected(self, package: str) -> str:
        """The tokens of the package where it was converted."""
        return (self.packages / package / "tokens.txt").read_text()


def check_base(environment: Environment) -> None:
    """The runtime and the filters; no conversion."""
    expect("convert" in environment.run("o2o", "--help").stdout, "o2o --help lists the verbs")
    expect("gc.py" in environment.run("o2o", "filters").stdout, "o2o filters lists the filters")
    environment.run("o2o", "completion", "bash")
    environment.run("o2o", "cache")
    refused = environment.run("o2o", "convert", environment.checkpoint, "-o", "p", code=1)
    expect(refused.stderr == NEEDS_EXPORT, f"convert names the extra: {refused.stderr!r}")
    refused = environment.run("python", "-m", "export", environment.checkpoint, "-o", "p", code=1)
    expect(refused.stderr.count("\n") == 1 and "o2o[export]" in refused.stderr, f"export: {refused.stderr!r}")
    check_runtime(environment)


def check_runtime(environment: Environment) -> None:
    """Filters and LiteRT on the converted packages."""
    model = environment.packages / "circle" / "model.circle"
    environment.run("gc.py", model, "-o", "model.circle")
    environment.run("o2o", "quantize.weights", "model.circle", "-o", "quantized.circle")
    expect("signature decode" in environment.run("o2o", "inspect", "quantized.circle").stdout, "inspect")
    for package in ("circle", "tflite"):
        tokens = environment.tokens(package, "--engine", "litert")
        expect(tokens == environment.expected(package), f"{package} on LiteRT: {tokens}")


def check_export(environment: Environment) -> None:
    """Conversion to all formats. The first environment makes the packages of the others."""
    for name, flags in FORMATS.items():
        target = environment.packages / name
        first = not target.exists()
        output = target if first else environment.work / name
        flags = [*flags, "--format", name, "--max-length", "64"]
        lengths = [] if name == "onnx" else ["--prefill-lengths", "16"]
        environment.run("o2o", "convert", environment.checkpoint, "-o", output, *flags, *lengths)
        if first and name != "onnx":
            (target / "tokens.txt").write_text(environment.tokens(name, "--engine", "litert"))
    verified = environment.run(
        "o2o", "verify", environment.packages / "circle", "--checkpoint", environment.checkpoint
    )
    expect("ALL TESTS PASSED" in verified.stdout, "verify")
    check_runtime(environment)


def check_onnx_runtime(environment: Environment) -> None:
    """The engine `onnx`, on Circle and on ONNX."""
    for package in ("circle", "onnx"):
        tokens = environment.tokens(package, "--engine", "onnx")
        expect(tokens == environment.expected("circle"), f"{package} on ONNX Runtime: {tokens}")


def check_onert(environment: Environment) -> None:
    """The engine `onert`, where there is a wheel of it."""
    if environment.python in WITHOUT_ONERT:
        refused = environment.run("o2o", "run", environment.packages / "circle", "--engine", "onert", code=1)
        expect(refused.stderr.count("\n") == 1, f"onert is not installed: {refused.stderr!r}")
        return
    tokens = environment.tokens("circle", "--engine", "onert")
    expect(tokens == environment.expected("circle"), f"circle on onert: {tokens}")


def check_plot(environment: Environment) -> None:
    """The plot and the JSON file of bench, under their default names."""
    flags = ["--rounds", "1", "--tokens", "4", "--warm", "--json", "--plot"]
    environment.run("o2o", "bench", environment.packages / "circle", *flags)
    for name in ("bench.json", "bench.png"):
        expect((environment.work / name).stat().st_size > 100, f"bench writes {name}")


def check_grammar(environment: Environment) -> None:
    """A text that matches a regular expression."""
    text = environment.run(
        "o2o", "run", environment.packages / "circle", "--regex", "ab*c", "--max-new-tokens", "8"
    )
    expect("a" in text.stdout, f"--regex: {text.stdout!r}")


def check_serve(environment: Environment) -> None:
    """The server: its models and its chat page."""
    command = [environment.bin / "o2o", "serve", environment.packages / "circle", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=environment.work) as server:
        assert server.stderr is not None
        address = next(line for line in server.stderr if "listening on" in line).rpartition(" ")[2].strip()
        try:
            for path, content in (("/v1/models", "circle"), ("/", "<title>"), ("/page/main.js", "import")):
                with urllib.request.urlopen(address + path) as response:
                    expect(content in response.read().decode(), f"{path} of o2o serve")
        finally:
            server.send_signal(signal.SIGINT)
    check_grammar(environment)


def check_dev(environment: Environment) -> None:
    """The tools of `make test` and `make lint`."""
    for tool in ("pytest", "ruff", "mypy"):
        environment.run(tool, "--version")
    environment.run("lint-imports", "--help")
    check_export(environment)


CHECKS: dict[str, Callable[[Environment], None]] = {
    "export": check_export,
    "base": check_base,
    "onnx-runtime": check_onnx_runtime,
    "onert": check_onert,
    "plot": check_plot,
    "grammar": check_grammar,
    "serve": check_serve,
    "dev": check_dev,
}
"""Extra -> its checks. `export` comes first: it makes the packages."""


def interpreter(version: str) -> str:
    """Find the interpreter of a version: on PATH, else of uv or pyenv."""
    finders = [["uv", "python", "find", version], ["pyenv", "prefix", version]]
    candidates = [shutil.which(f"python{version}") or ""]
    for finder in finders:
        if shutil.which(finder[0]):
            found = subprocess.run(finder, capture_output=True, text=True).stdout.strip()
            candidates += [found, f"{found}/bin/python3"]
    for candidate in filter(os.path.isfile, candidates):
        done = subprocess.run(
            [candidate, "-c", "import sys; print(sys.version)"], capture_output=True, text=True
        )
        if done.stdout.startswith(f"{version}."):
            return candidate
    raise Failed(f"no Python {version} on PATH, and none of uv or pyenv")


def execute(
    command: Sequence[object], folder: Path, code: int = 0, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command outside the checkout. Raises Failed for another exit code, or a traceback."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["O2O_CACHE"] = str(folder / "cache")
    if path is not None:
        environment["PATH"] = f"{path}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=3600)
    if done.returncode != code or "Traceback" in done.stderr:
        last = re.sub(r"\s+", " ", (done.stderr or done.stdout)[-600:])
        raise Failed(f"{shlex.join(words)}: exit code {done.returncode}, expected {code}: {last}")
    return done


def expect(condition: bool, what: str) -> None:
    """Raises Failed."""
    if not condition:
        raise Failed(f"not so: {what}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 1 if a check fails."""
    parser = Parser(
        prog="python -m tests.wheel",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pythons", type=name_list, default=PYTHONS, help="versions to test")
    parser.add_argument("--extras", type=name_list, default=list(CHECKS), help="extras to test, each alone")
    parser.add_argument(
        "--torch", default="torch==2.13.0", help="what pip installs first: an index of CPU builds"
    )
    parser.add_argument(
        "--packages", type=Path, help="keep the converted packages here, or use those of an earlier run"
    )
    return run("wheel", lambda: test(parser.parse_args(argv)))


def test(args: argparse.Namespace) -> int:
    """Test all combinations; print a line for each."""
    failures = 0
    with tempfile.TemporaryDirectory(prefix="wheel-") as name:
        folder = Path(name)
        wheel = build_wheel(folder)
        packages = (args.packages or folder / "packages").absolute()
        packages.mkdir(exist_ok=True)
        checkpoint = write_checkpoint(folder / "checkpoint")
        for python in args.pythons:
            for extra in (extra for extra in CHECKS if extra in args.extras):
                started = time.monotonic()
                place = folder / f"{python}-{extra}"
                try:
                    environment = Environment(python, extra, place, packages, checkpoint)
                    environment.install(wheel, args.torch)
                    CHECKS[extra](environment)
                    outcome = "passed"
                except Failed as error:
                    failures += 1
                    outcome = f"FAILED: {error}"
                shutil.rmtree(place, ignore_errors=True)
                print(
                    f"Python {python:5} {extra:13} {time.monotonic() - started:6.0f} s  {outcome}", flush=True
                )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
