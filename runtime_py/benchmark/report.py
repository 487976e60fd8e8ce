"""Report of `python -m runtime_py.bench`: as text, as JSON and as a plot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from o2o.cli.text import counted


@dataclass(frozen=True)
class Prefill:
    """Seconds `first` from a prompt of `tokens` to the first new token."""

    tokens: int
    first: float

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return self.tokens / self.first


@dataclass(frozen=True)
class Decode:
    """Seconds `step` of a decode step after `context` tokens, and its `share` of the memory bandwidth."""

    context: int
    step: float
    share: float

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return 1 / self.step


@dataclass
class Report:
    """Measurements of a package. Times are in seconds, sizes in bytes, `bandwidth` in bytes per second.

    `cold` is the load time with an empty disk cache, None where it was not measured; `warm` with a full one.
    """

    package: str
    engine: str
    model_bytes: int
    threads: int
    capacity: int
    bandwidth: float
    weight_bytes: int
    row_bytes: int
    cold: float | None
    warm: float
    memory: float = 0.0
    prefill: list[Prefill] = field(default_factory=list)
    decode: list[Decode] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """Return the report as text.

        Yields:
            Its lines.
        """
        yield (
            f"{self.package}: {self.model_bytes / 1e6:,.1f} MB, {self.capacity} tokens of context, "
            f"{counted(self.threads, 'thread')}"
        )
        yield f"engine    {self.engine}"
        cold = "" if self.cold is None else f"{self.cold:.2f} s cold, "
        yield f"load      {cold}{self.warm:.2f} s warm"
        for prompt in self.prefill:
            yield (
                f"prefill   {prompt.tokens:>6,} tokens: first token after {prompt.first * 1e3:,.1f} ms, "
                f"{prompt.speed:,.1f} tokens/s"
            )
        for step in self.decode:
            yield (
                f"decode    after {step.context:>7,}: {step.speed:,.1f} tokens/s, {step.share:.0%} of the "
                "memory bandwidth"
            )
        share = self.memory / self.model_bytes
        yield f"memory    {self.memory / 1e6:,.0f} MB at most, {share:.2f} of the file"
        yield (
            f"reads     {self.weight_bytes / 1e6:,.1f} MB a step and {self.row_bytes / 1e3:,.1f} kB a token "
            f"of context; memory bandwidth {self.bandwidth / 1e9:.1f} GB/s"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON.

        Returns:
            Its fields, and speeds in tokens per second.
        """
        speeds = {
            "prefill": [{**asdict(one), "speed": one.speed} for one in self.prefill],
            "decode": [{**asdict(one), "speed": one.speed} for one in self.decode],
        }
        return {"version": 1, **asdict(self), **speeds}

    def plot(self, file: Path) -> None:
        """Draw tokens per second over the context length, with matplotlib.

        Args:
            file: The image to write; its suffix decides the format.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 4), layout="constrained")
        figure.suptitle(f"{Path(self.package).name}, {counted(self.threads, 'thread')}")
        decode, prefill = figure.subplots(1, 2)
        contexts, prompts = [one.context for one in self.decode], [one.tokens for one in self.prefill]
        decode.plot(contexts, [one.speed for one in self.decode], marker="o")
        limits = [one.speed / one.share for one in self.decode]
        decode.plot(contexts, limits, linestyle="--", color="grey", label="memory bandwidth")
        decode.set(title="decode", xlabel="tokens of context", ylabel="tokens/s")
        decode.legend()
        prefill.plot(prompts, [one.speed for one in self.prefill], marker="o")
        prefill.set(title="prefill", xlabel="tokens of the prompt")
        for axes, lengths in ((decode, contexts), (prefill, prompts)):
            axes.set_xscale("log", base=2)
            axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
        figure.savefig(file)
