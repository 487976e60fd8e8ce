"""Report of `o2o bench`: as text, as JSON and as a plot."""

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
    `processor` and `processor_cache`, the bytes of its largest cache, describe the machine.
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
    processor: str = ""
    processor_cache: int = 0
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
        if note := self._note():
            yield f"          above 100%: {note}"
        share = self.memory / self.model_bytes
        yield f"memory    {self.memory / 1e6:,.0f} MB at most, {share:.2f} times the file"
        yield (
            f"reads     {self.weight_bytes / 1e6:,.1f} MB a step and {self.row_bytes / 1e3:,.1f} kB a token "
            f"of context; memory bandwidth {self.bandwidth / 1e9:.1f} GB/s"
        )

    def _note(self) -> str:
        """Why steps are faster than the memory; empty if none is."""
        beyond = [step for step in self.decode if step.share > 1]
        if not beyond:
            return ""
        read = self._bytes_read(min(step.context for step in beyond))
        if read <= self.processor_cache:
            return (
                f"a step reads {read / 1e6:,.1f} MB, which stay in the processor's cache of "
                f"{self.processor_cache / 1e6:,.0f} MB; its bandwidth is higher than the memory's"
            )
        if not self.processor_cache:
            return "what a step reads stays in the processor's cache"
        return (
            f"a part of the {read / 1e6:,.1f} MB of a step stays in the processor's cache, or "
            "other processes slowed the measurement of the bandwidth"
        )

    def _bytes_read(self, context: float) -> float:
        """The bytes that a step after `context` tokens reads."""
        return self.weight_bytes + context * self.row_bytes

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

        The roofline of decode is the speed of a step that only reads its bytes from memory.

        Args:
            file: The image to write; its suffix decides the format.
        """
        import numpy as np
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4.8), layout="constrained")
        model = Path(self.package).resolve().name
        figure.suptitle(
            f"{model} on {self.engine.partition(':')[0]}\n{self.processor}".strip(), fontsize="medium"
        )
        decode, prefill = figure.subplots(1, 2)
        contexts, prompts = [one.context for one in self.decode], [one.tokens for one in self.prefill]
        positions = np.linspace(0, max(contexts), 200)
        decode.plot(
            positions,
            [self.bandwidth / self._bytes_read(position) for position in positions],
            linestyle="--",
            color="tab:red",
            label=f"roofline: memory bandwidth, {self.bandwidth / 1e9:.1f} GB/s",
        )
        decode.plot(contexts, [one.speed for one in self.decode], marker="o", label="measured")
        decode.set(title="Decode", xlabel="tokens of context", ylabel="tokens per second")
        prefill.plot(prompts, [one.speed for one in self.prefill], marker="o", label="measured")
        prefill.set(title="Prefill", xlabel="tokens of the prompt", ylabel="tokens per second")
        for axes, points in ((decode, self.decode), (prefill, self.prefill)):
            axes.set_xlim(0, 1.06 * axes.dataLim.x1)
            axes.set_ylim(0, 1.15 * axes.dataLim.y1)
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.yaxis.set_major_formatter("{x:,.0f}")
            axes.grid(alpha=0.3)
            axes.legend(loc="best")
            lengths = contexts if axes is decode else prompts
            for length, point in _spread(list(zip(lengths, points, strict=True)), axes.get_xlim()[1] / 10):
                axes.annotate(
                    f"{point.speed:,.0f}",
                    (length, point.speed),
                    xytext=(0, 7),
                    textcoords="offset points",
                    ha="left" if length < 0.05 * axes.get_xlim()[1] else "center",
                    fontsize="small",
                )
        if note := self._note():
            figure.supxlabel(f"Above the roofline: {note}.", fontsize="small", color="dimgrey")
        figure.savefig(file, dpi=120)


def _spread(points: list[tuple[int, Any]], distance: float) -> list[tuple[int, Any]]:
    """The points to label, which lie at least `distance` apart. The last is one of them."""
    chosen = points[-1:]
    for point in reversed(points[:-1]):
        if chosen[-1][0] - point[0] >= distance:
            chosen.append(point)
    return chosen
