#!/usr/bin/env python3
"""Test flash attention: forward pass, prefill and decode, generation, and against standard attention.

    python test_flash_attention.py [--checkpoint_path=DIR]

Exit code 0: all tests passed; 1: a test failed; 2: wrong usage. This is a command; the project's tests are in
`tests/`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    # Run by path, Python looks for modules in this folder first, where `tinyllama` is a script.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    from o2o.cli.interrupt import exit_on_interrupt

    exit_on_interrupt("test_flash_attention.py")

from o2o.cli.arguments import Parser
from tinyllama.verification import flags
from tinyllama.verification.output import Report

if TYPE_CHECKING:
    import torch

    from tinyllama.kv_cache import KVCache
    from tinyllama.tiny_llama import TinyLlama

TOLERANCE = 1e-4
MARK = {True: "✅", False: "❌"}


def parser() -> Parser:
    """Make the command line's parser.

    Returns:
        The parser.
    """
    parser = flags.parser("test_flash_attention.py", __doc__)
    parser.add_argument(
        "--tolerance", type=flags.tolerance, default=TOLERANCE, help="of logits (%(default)s)"
    )
    flags.add_block_flags(parser)
    return parser


def test(args: argparse.Namespace) -> int:
    """Run the tests.

    Args:
        args: The parsed command line.

    Returns:
        The exit code.
    """
    import torch

    from tinyllama import tiny_llama

    directory = flags.directory_of(args)
    tokenizer, prompts = flags.encode_prompts(args, directory)
    tokens = torch.tensor([next(iter(prompts.values()))])
    T = tokens.shape[1]
    capacity = T + args.max_new_tokens  # S
    blocks = flags.blocks_for(args, T)
    flash = tiny_llama.build_model(directory, capacity, use_flash_attention=True, blocks=blocks)
    standard = tiny_llama.build_model(directory, capacity)
    standard.transformer.load_state_dict(flash.transformer.state_dict(), assign=True)  # one copy in memory
    results: dict[str, bool] = {}
    report = Report()

    def check(passed: bool, line: str, of: str) -> None:
        report.write(f"  {MARK[passed]} {line}")
        results[of] = results.get(of, True) and passed

    with torch.no_grad():
        report.write("Test: Flash Attention with KV Cache")
        logits, cache = run(flash, tokens, 0)
        check(bool(logits.isfinite().all()), "Forward pass successful", "Forward pass with KV cache")

        continued, of = logits[0, -1], "Prefill and decode stages"
        if T > 1:  # prefill of all tokens but the last, decode of the last
            continued = run(flash, tokens[:, -1:], T - 1, run(flash, tokens[:, :-1], 0)[1])[0][0, -1]
        off = float((continued - logits[0, -1]).abs().max())
        check(off <= args.tolerance, f"Prefill successful: decode continues it, within {off:.3e}", of)

        expected, standard_cache = run(standard, tokens, 0)
        gaps, generated, same = [(logits - expected).abs().flatten()], [], True
        for position in range(T, T + args.max_new_tokens):
            generated.append(int(logits[0, -1].argmax()))
            same &= generated[-1] == int(expected[0, -1].argmax())
            token = torch.tensor([generated[-1:]])
            logits, cache = run(flash, token, position, cache)
            expected, standard_cache = run(standard, token, position, standard_cache)
            gaps.append((logits - expected).abs().flatten())
        check(
            bool(logits.isfinite().all()),
            f"Autoregressive decode successful: {tokenizer.decode(generated)!r}",
            "Autoregressive generation",
        )

    report.write("\nTest: Flash Attention vs Standard Attention Comparison")
    gap, of = torch.cat(gaps), "Flash vs Standard attention comparison"
    report.write(f"  Max absolute difference: {float(gap.max()):.3e}")
    report.write(f"  Mean absolute difference: {float(gap.mean()):.3e}")
    within = bool(gap.max() <= args.tolerance)
    check(
        within, f"Outputs {'match' if within else 'do not match'} within tolerance {args.tolerance:.0e}", of
    )
    check(same, f"{'The same' if same else 'Not the same'} {len(generated)} tokens", of)
    report.write()
    for name, passed in results.items():
        report.write(f"{MARK[passed]} {name}")
    passed = all(results.values())
    report.write("✅ All Tests Passed!" if passed else "❌ Not all tests passed: verify_flash.py shows where")
    return 0 if passed else 1


def run(
    model: TinyLlama, tokens: torch.Tensor, position: int, cache: KVCache | None = None
) -> tuple[torch.Tensor, KVCache]:
    """Run a model.

    Args:
        model: The model.
        tokens: int [1, T].
        position: The position of the first token.
        cache: The caches before; None for empty ones.

    Returns:
        Logits [1, T, V], and the caches afterwards.
    """
    import torch

    output = model(tokens, torch.arange(position, position + tokens.shape[1]), cache)
    return output["logits"], output["kv_cache"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    return flags.main(parser(), test, argv)


if __name__ == "__main__":
    sys.exit(main())
