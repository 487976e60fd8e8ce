"""Run decoders in ONNX that other tools exported, and compare their greedy tokens with other runtimes.

    python bench/foreign_decoders.py FOLDER... [--checkpoint DIR] [--genai PYTHON] [--tokens N]

For each folder, one line: the form of its caches, the decode speed, and whether the tokens are the same as

    transformers     of the checkpoint, in float32 (--checkpoint)
    genai            onnxruntime-genai, where the folder has genai_config.json; --genai is the Python of an
                     environment that has it, by default this one

A quantized decoder may choose other tokens than its checkpoint, but not others than genai. The exit code is 1
if a decoder cannot be run, or float32 tokens differ.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder
    from o2o.cli import interrupt

    interrupt.exit_on_interrupt("foreign_decoders.py")

import importlib.util
import json
import subprocess
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from o2o.cli.arguments import Parser, positive_int
from o2o.cli.command import run
from o2o.errors import ModelError, O2oError
from runtime_py.engines.onnx.decoder.engine import DecoderEngine
from runtime_py.package import Package

PROMPT = [1, 5, 9, 44, 23, 99, 100]
GENAI = """
import json, sys
import onnxruntime_genai as genai

folder, prompt, count = json.loads(sys.argv[1])
model = genai.Model(folder)
parameters = genai.GeneratorParams(model)
parameters.set_search_options(do_sample=False)
generator = genai.Generator(model, parameters)
generator.append_tokens(prompt)
tokens = []
while len(tokens) < count and not generator.is_done():
    generator.generate_next_token()
    tokens.append(int(generator.get_next_tokens()[0]))
print(json.dumps(tokens))
"""
"""The program that runs in the environment of onnxruntime-genai."""


@dataclass(frozen=True)
class Result:
    """What this runtime computed.

    Attributes:
        tokens: The greedy tokens.
        caches: The forms of the caches, or the name of another engine.
        dtype: The dtype of the weights.
        is_exact: Whether it computes with float32 throughout.
        speed: Decode steps per second.
    """

    tokens: list[int]
    caches: str
    dtype: str
    is_exact: bool
    speed: float


def decode(folder: Path, count: int) -> Result:
    """Choose greedy tokens with this runtime.

    Args:
        folder: A package.
        count: How many tokens.

    Returns:
        The tokens and their speed.

    Raises:
        ModelError: The package cannot be run.
    """
    with closing(Package.load(folder).engine()) as engine, closing(engine.open_session()) as session:
        logits, tokens = session.prefill(PROMPT), [0] * count
        started = time.perf_counter()
        for index in range(count):
            tokens[index] = int(logits.argmax())
            logits = session.decode(tokens[index], len(PROMPT) + index)
        seconds = time.perf_counter() - started
        caches, is_exact = type(engine).__name__, engine.weight_dtype == "float32"
        if isinstance(engine, DecoderEngine):
            names = {type(create()).__name__ for create in engine.abilities.openers.values()}
            caches, is_exact = ", ".join(sorted(names)) or "no caches", not engine.step.interface.is_rounded
        return Result(tokens, caches, engine.weight_dtype, is_exact, count / seconds)


def tokens_of_transformers(checkpoint: Path, count: int) -> list[int]:
    """Choose greedy tokens with transformers.

    Args:
        checkpoint: The folder of the checkpoint.
        count: How many tokens.

    Returns:
        The tokens.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ids = torch.tensor([PROMPT])
    generated = model.generate(ids, max_new_tokens=count, do_sample=False, eos_token_id=None)
    return [int(token) for token in generated[0, len(PROMPT) :]]


def tokens_of_genai(python: str, folder: Path, count: int) -> list[int]:
    """Choose greedy tokens with onnxruntime-genai.

    Args:
        python: The interpreter of an environment that has it.
        folder: A folder with `genai_config.json`.
        count: How many tokens.

    Returns:
        The tokens, fewer at the end of a sequence.

    Raises:
        ModelError: It fails.
    """
    request = json.dumps([str(folder.absolute()), PROMPT, count])
    child = subprocess.run([python, "-c", GENAI, request], capture_output=True, text=True, check=False)
    if child.returncode:
        raise ModelError(f"onnxruntime-genai: {(child.stderr.strip().splitlines() or ['no message'])[-1]}")
    tokens: list[int] = json.loads(child.stdout.splitlines()[-1])
    return tokens


def comparison(name: str, expected: Sequence[int], tokens: Sequence[int]) -> str:
    """Say whether tokens are the same.

    Args:
        name: The other runtime.
        expected: Its tokens; the comparison ends with them.
        tokens: The tokens of this runtime.

    Returns:
        A few words.
    """
    first = next((index for index, token in enumerate(expected) if tokens[index] != token), None)
    return f"as {name}" if first is None else f"differs from {name} from token {first + 1} on"


def report(folders: Sequence[Path], checkpoint: Path | None, genai: str | None, count: int) -> int:
    """Print a line for each folder.

    Args:
        folders: The packages.
        checkpoint: The checkpoint that they were exported from; None for none.
        genai: The interpreter with onnxruntime-genai; None for none.
        count: How many tokens.

    Returns:
        The exit code.
    """
    reference = tokens_of_transformers(checkpoint, count) if checkpoint is not None else None
    wrong = False
    for folder in folders:
        try:
            result = decode(folder, count)
            words = []
            if reference is not None:
                words.append(comparison("transformers", reference, result.tokens))
                wrong |= reference != result.tokens and result.is_exact
            if genai is not None and (folder / "genai_config.json").is_file():
                expected = tokens_of_genai(genai, folder, count)
                words.append(comparison("genai", expected, result.tokens))
                wrong |= expected != result.tokens[: len(expected)]
            facts = f"{result.caches}, {result.dtype}, {result.speed:,.0f} tokens/s"
            print(f"{folder}: {facts}: {'; '.join(words)}")
        except (O2oError, OSError) as error:
            print(f"{folder}: {error}")
            wrong = True
    return int(wrong)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    parser = Parser(prog="bench/foreign_decoders.py", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("folders", nargs="+", metavar="FOLDER", type=Path, help="a package with an ONNX decoder")
    add("--checkpoint", metavar="DIR", type=Path, help="compare with transformers")
    add("--genai", metavar="PYTHON", help="the Python of an environment with onnxruntime-genai")
    add("--tokens", metavar="N", type=positive_int, default=16, help="(%(default)s)")

    def body() -> int:
        args = parser.parse_args(argv)
        here = sys.executable if importlib.util.find_spec("onnxruntime_genai") else None
        return report(args.folders, args.checkpoint, args.genai or here, args.tokens)

    return run("foreign_decoders.py", body)


if __name__ == "__main__":
    sys.exit(main())
