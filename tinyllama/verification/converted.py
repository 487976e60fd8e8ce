"""The check of verify_tflite.py: a file as it will be run against transformers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from runtime_py.detokenizer import Detokenizer
from runtime_py.generation import generate
from runtime_py.tokenizer import Tokenizer
from tinyllama.verification import comparison
from tinyllama.verification.comparison import Step
from tinyllama.verification.hugging_face import HuggingFace
from tinyllama.verification.precision import Precision
from tinyllama.verification.report import Report
from tinyllama.verification.tflite import TfliteFile
from tinyllama.verification.trace import FLOAT32

FIRST = 10  # tokens that must be the same


def verify(
    report: Report,
    file: TfliteFile,
    reference: HuggingFace,
    precision: Precision,
    prompts: Mapping[str, Sequence[int]],
    tokenizer: Tokenizer,
    max_new_tokens: int,
    eos: Collection[int],
) -> None:
    """For each prompt: what both generate, then how far their logits are apart, fed the same tokens."""
    report.say(describe(file))
    report.say(f"Asked of {precision.told()}")
    for text, prompt in prompts.items():
        report.say()
        report.say(f'Prompt: "{text}", {len(prompt)} tokens')
        steps = comparison.drift(reference, file, prompt, max_new_tokens, eos)
        own = list(generate(file, prompt, Detokenizer(tokenizer), eos=eos, max_new_tokens=max_new_tokens))
        report.say(f'  PyTorch:  "{tokenizer.decode([step.expected for step in steps])}"')
        report.say(f'  TFLite:   "{"".join(token.text for token in own)}"')
        good = [
            _logits(report, "prefill", steps[:1], precision),
            _logits(report, "decode", steps[1:], precision),
            _tokens(report, steps, [token.id for token in own], precision, tokenizer),
        ]
        _drift(report, steps, tokenizer)
        if not all(good):
            _locate(report, file, reference, precision, prompt, steps)
        report.verdict(all(good), f'prompt "{text}"')
    report.say()
    report.total()


def describe(file: TfliteFile) -> str:
    """The file in a line."""
    names = ", ".join(f"{one.name} of {one.length} tokens" for one in file.contract.prefills)
    size = file.file.stat().st_size
    cache = next(iter(file.contract.decode.caches.values()))
    return f"{file.file.name}: {size:,} bytes; {names}, decode; KV caches {list(cache.shape)}"


def _logits(report: Report, stage: str, steps: Sequence[Step], precision: Precision) -> bool:
    if not steps:
        return True
    good = precision.holds(steps)
    count = f" of {len(steps)} tokens" if stage == "decode" else ""
    told = f"{stage}: logits{count} within {max(step.off for step in steps):.1e}"
    report.check(good, f"{told}, noise {max(step.noise for step in steps):.1e}")
    return good


def _tokens(
    report: Report, steps: Sequence[Step], own: Sequence[int], precision: Precision, tokenizer: Tokenizer
) -> bool:
    """Whether the first tokens are the same, or drift explains why not."""
    expected = [step.expected for step in steps][:FIRST]
    parted = comparison.parting(steps)
    same = len(expected) if parted is None else min(parted, len(expected))
    if own[:same] != expected[:same]:
        report.check(False, f"generating gave {own[:same]}, feeding the same tokens {expected[:same]}")
        return False
    line = f"First {FIRST} tokens match: {same}/{len(expected)}"
    if parted is None or parted >= len(expected):
        report.check(True, line)
        return True
    step = steps[parted]
    good = precision.explained(steps, parted)
    one, other = (tokenizer.decode([token]) for token in (step.expected, step.found))
    told = "which the drift explains" if good else "which is more than the drift explains"
    report.check(good, f"{line}; then {other!r} for {one!r}, {step.gap:.1e} less likely in logits, {told}")
    return good


def _drift(report: Report, steps: Sequence[Step], tokenizer: Tokenizer) -> None:
    report.say("    drift, both fed PyTorch's tokens:")
    report.say("    step   logits off by    noise   token")
    for number, step in enumerate(steps):
        token = repr(tokenizer.decode([step.expected]))
        if step.found != step.expected:
            token += f", not {tokenizer.decode([step.found])!r}"
        report.say(f"    {number:4}   {step.off:13.1e}  {step.noise:7.1e}   {token}")


def _locate(
    report: Report,
    file: TfliteFile,
    reference: HuggingFace,
    precision: Precision,
    prompt: Sequence[int],
    steps: Sequence[Step],
) -> None:
    """Name the first tensor that differs, at the first step that is not as it should be."""
    bad = [number for number, step in enumerate(steps) if not precision.holds([step])]
    parted = comparison.parting(steps)
    at = min([*bad, *([parted] if parted is not None else [])], default=0)
    where = f"prefill of {len(prompt)} tokens" if at == 0 else f"decode at position {len(prompt) - 1 + at}"
    limit = precision.noise or 0.0
    if steps[at].noise <= limit or not limit:  # it is not the noise that is wrong
        limit = min(FLOAT32, precision.tolerance or FLOAT32)
    report.say(f"    {where}: {comparison.locate(reference, file, prompt, steps, at, limit)}")
