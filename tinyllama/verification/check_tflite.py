"""The check of verify_tflite.py: a file, run as a user runs it, against transformers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from export.parameter_matching import match_parameters
from o2o.cli.text import counted
from o2o.weights.checkpoint import open_checkpoint
from runtime_py.generation.generate import generate
from runtime_py.generation.generation_config import GenerationConfig
from runtime_py.generation.session import Session
from runtime_py.generation.session_pool import SessionPool
from runtime_py.text.detokenizer import Detokenizer
from runtime_py.text.tokenizer import Tokenizer
from tinyllama.verification import comparison
from tinyllama.verification.comparison import Step
from tinyllama.verification.hugging_face import HuggingFace
from tinyllama.verification.output import Report
from tinyllama.verification.quantized_reference import emulate_quantization, weights_with_rounded_inputs
from tinyllama.verification.tflite import TfliteFile
from tinyllama.verification.tolerances import Precision
from tinyllama.verification.trace import FLOAT32
from tinyllama.verification.weights import compare_weights, weights_in

FIRST = 10  # tokens that must be the same


@dataclass
class Verification:
    """The verification of `file` against `reference`, after each of `prompts` (text: ids)."""

    report: Report
    file: TfliteFile
    reference: HuggingFace
    precision: Precision
    prompts: Mapping[str, Sequence[int]]
    tokenizer: Tokenizer
    max_new_tokens: int
    eos: Collection[int]

    def run(self) -> None:
        """Compare the weights, the generated tokens, and the logits for the same tokens.

        If the file's weights are float32, logits are compared with the checkpoint's. Otherwise `reference`
        gets the file's own weights first (`emulate_quantization`).
        """
        self.report.write(self._describe())
        named = self._weights()
        if self.precision.exact or not named:
            self._generate(self.precision.unknown())
        else:
            self._generate(None)
            rounded = weights_with_rounded_inputs(self.file.model)
            emulate_quantization(
                self.reference.model, weights_in(self.file.model, self.file.parameters), rounded
            )
            how = ", and rounds what they are multiplied with to 8 bits" if rounded else ""
            self.report.write(f"\nThe computation: PyTorch takes the file's weights{how}")
            for text, prompt in self.prompts.items():
                self.report.write(f'Prompt: "{text}"')
                self.report.verdict(self._logits(prompt, self._drift(prompt), self.precision), f'"{text}"')
        self.report.write()
        self.report.total()

    def _describe(self) -> str:
        contract, file = self.file.contract, self.file.file
        names = ", ".join(f"{one.name} of {one.length} tokens" for one in contract.prefills)
        cache = next(iter(contract.decode.caches.values()))
        return f"{file.name}: {file.stat().st_size:,} bytes; {names}, decode; KV caches {list(cache.shape)}"

    def _weights(self) -> bool:
        """Compare the weights with the checkpoint's. Return whether the file has all of them by name."""
        constants = weights_in(self.file.model, self.file.parameters)
        stored = match_parameters(self.file.language_model, open_checkpoint(self.file.directory))
        weights = compare_weights(constants, stored)
        wrong = [weight for weight in weights if not weight.right]
        what = "the checkpoint's" if self.precision.exact else f"the checkpoint's, as {self.precision.stored}"
        self.report.check(
            not wrong, f"{len(weights) - len(wrong)} of {counted(len(stored), 'weight')} are {what}"
        )
        for weight in wrong[:3]:
            self.report.write(
                f"    {weight.name} differs by {weight.off:.1e}; the limit is {weight.step:.1e}"
            )
        missing = [name for name in stored if name not in constants]
        if missing:
            self.report.write(
                f"    not compared, as the file has no weight of that name: {missing[0]} and others"
            )
        self.report.verdict(not wrong, "weights")
        return not missing

    def _generate(self, required: Precision | None) -> None:
        """Compare the generated tokens, and the logits if there are limits for them."""
        for text, prompt in self.prompts.items():
            self.report.write()
            self.report.write(f'Prompt: "{text}", {len(prompt)} tokens')
            steps = self._drift(prompt)
            good = [self._tokens(prompt, steps)]
            if required is not None:
                good.append(self._logits(prompt, steps, required))
            self._table(steps)
            self.report.verdict(all(good), f'prompt "{text}"')

    def _drift(self, prompt: Sequence[int]) -> list[Step]:
        return comparison.drift(self.reference, self.file, prompt, self.max_new_tokens, self.eos)

    def _tokens(self, prompt: Sequence[int], steps: Sequence[Step]) -> bool:
        """Whether the first tokens are the same, or drift explains the difference."""
        generated = list(
            generate(
                Session(SessionPool(self.file.engine)),
                prompt,
                Detokenizer(self.tokenizer),
                config=GenerationConfig(eos_token_id=tuple(self.eos)),
                max_new_tokens=self.max_new_tokens,
            )
        )
        self.report.write(f'  PyTorch:  "{self.tokenizer.decode([step.expected for step in steps])}"')
        self.report.write(f'  TFLite:   "{"".join(token.text for token in generated)}"')
        own, expected = ([one.id for one in generated][:FIRST], [step.expected for step in steps][:FIRST])
        parted = comparison.parting(steps[:FIRST])
        same = len(expected) if parted is None else parted
        line = f"First {FIRST} tokens match: {same}/{len(expected)}"
        if own[:same] != expected[:same]:
            self.report.check(
                False, f"generating gives {own[:same]}, feeding the same tokens {expected[:same]}"
            )
            return False
        if parted is None:
            self.report.check(True, line)
            return True
        step = steps[parted]
        good = self.precision.explains(steps, parted)
        one, other = (self.tokenizer.decode([token]) for token in (step.expected, step.actual))
        reason = "as the drift explains" if good else "which no drift explains"
        parting = f"then {other!r}, not {one!r}, whose logit is {step.gap:.1e} higher"
        self.report.check(good, f"{line}; {parting}, {reason}")
        if not good:
            self._locate(prompt, steps, parted, FLOAT32)
        return good

    def _logits(self, prompt: Sequence[int], steps: Sequence[Step], required: Precision) -> bool:
        """Whether the logits are within the limits."""
        good = True
        for stage, part in (("prefill", steps[:1]), ("decode", steps[1:])):
            if part:
                good &= (holds := required.holds(part))
                off, noise = (max(getattr(step, what) for step in part) for what in ("off", "noise"))
                count = f" of {counted(len(part), 'token')}" if stage == "decode" else ""
                result = f"{stage}: logits{count} within {off:.1e}, noise {noise:.1e}"
                self.report.check(holds, f"{result} (required: {required.describe()})")
        if not good:
            at = next((number for number, step in enumerate(steps) if not required.holds([step])), 0)
            limit = required.noise or FLOAT32
            if required.tolerance is not None and steps[at].noise <= limit:
                limit = min(FLOAT32, required.tolerance)
            self._locate(prompt, steps, at, limit)
        return good

    def _table(self, steps: Sequence[Step]) -> None:
        """The drift, step by step."""
        self.report.write("    drift, both fed PyTorch's tokens:")
        self.report.write("    step   logits off by    noise   token")
        for number, step in enumerate(steps):
            token = repr(self.tokenizer.decode([step.expected]))
            if step.actual != step.expected:
                token += f", not {self.tokenizer.decode([step.actual])!r}"
            self.report.write(f"    {number:4}   {step.off:13.1e}  {step.noise:7.1e}   {token}")

    def _locate(self, prompt: Sequence[int], steps: Sequence[Step], at: int, limit: float) -> None:
        """Name the first tensor that differs at step `at`."""
        where = f"decode at position {len(prompt) - 1 + at}" if at else f"prefill of {len(prompt)} tokens"
        difference = comparison.locate(self.reference, self.file, prompt, steps, at, limit)
        self.report.write(f"    {where}: {difference}")
