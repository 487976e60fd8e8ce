"""Train the demo's vocabulary and model on the story grammar, and write the checkpoint.

The shape is that of the public TinyLLama-v0: 8 layers of width 64, 16 heads of size 4. Training sees every
story once: stories are generated on demand, without those that are held out. With ``--steps`` the result is a
function of the seed, on one machine and version of PyTorch. With ``--minutes`` it depends on the clock.

    python -m tinyllama.demo.train --out DIR --steps 15000 --seed 0 --threads 1
"""

from __future__ import annotations

if __name__ == "__main__":
    from o2o.cli.interrupt import exit_on_interrupt

    exit_on_interrupt("train")


import itertools
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from o2o.cli import command
from o2o.cli.arguments import Parser
from tinyllama.demo import tokenizer as vocabulary
from tinyllama.demo.corpus import Story, make_stories, stories

# Added to the run's seed: streams of different seeds are independent.
VOCABULARY_SEED, HELD_OUT_SEED, TRAINING_SEED = 1_000_000, 2_000_000, 3_000_000
IGNORED = -100


@dataclass(frozen=True)
class Settings:
    """Everything that determines the result of a run, except its length."""

    seed: int = 0
    vocab_size: int = 2048
    vocabulary_stories: int = 40_000
    held_out_stories: int = 1_000
    # A prefix of the held-out stories whose loss is reported too, for a check that takes a second.
    sample_stories: int = 64
    batch_size: int = 8
    # Batches whose stories are sorted by length together, to save padding.
    pool_batches: int = 128
    peak_lr: float = 6e-3
    final_lr: float = 3e-5
    warmup_steps: int = 300
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    threads: int = 2


def model_config(vocab_size: int) -> LlamaConfig:
    """Return the shape of TinyLLama-v0.

    Args:
        vocab_size: V.

    Returns:
        transformers' configuration.
    """
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=16,
        head_dim=4,
        hidden_act="silu",
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False,
        bos_token_id=vocabulary.BOS_ID,
        eos_token_id=vocabulary.EOS_ID,
        pad_token_id=vocabulary.PAD_ID,
        dtype="float32",
        # At head size 4 and these lengths plain matrix products beat the fused kernel by a third on a CPU.
        attn_implementation="eager",
    )


def encode(tokenizer: Tokenizer, batch: list[Story]) -> list[list[int]]:
    """Encode stories, with ``<s>`` in front and ``</s>`` at the end.

    Args:
        tokenizer: The tokenizer.
        batch: The stories.

    Returns:
        The ids of each story.
    """
    encodings = tokenizer.encode_batch([story.text for story in batch])
    return [[*encoding.ids, vocabulary.EOS_ID] for encoding in encodings]


def collate(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad rows on the right. No attention mask is needed: attention is causal, and padding comes last.

    Args:
        rows: The ids of each story.

    Returns:
        Inputs and next-token labels, int64 [rows, longest row - 1].
    """
    width = max(map(len, rows)) - 1
    inputs = torch.full((len(rows), width), vocabulary.PAD_ID)
    labels = torch.full((len(rows), width), IGNORED)
    for i, row in enumerate(rows):
        inputs[i, : len(row) - 1] = torch.tensor(row[:-1])
        labels[i, : len(row) - 1] = torch.tensor(row[1:])
    return inputs, labels


def loss_of(
    model: LlamaForCausalLM, inputs: torch.Tensor, labels: torch.Tensor, reduction: str = "mean"
) -> torch.Tensor:
    """Compute the cross entropy over the labels that are not ignored.

    Args:
        model: The model.
        inputs: int64 [rows, width].
        labels: int64 [rows, width].
        reduction: `mean` or `sum`.

    Returns:
        float32 scalar, in nats.
    """
    logits = model(input_ids=inputs, use_cache=False).logits  # float32 [rows, width, vocab]
    return functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction=reduction
    )


def evaluate(model: LlamaForCausalLM, tokenizer: Tokenizer, batch: list[Story]) -> float:
    """Compute the mean loss per token, ``</s>`` included.

    Args:
        model: The model.
        tokenizer: The tokenizer.
        batch: The stories.

    Returns:
        The loss in nats.
    """
    rows = sorted(encode(tokenizer, batch), key=len)
    total, tokens = 0.0, 0
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(rows), 32):
            inputs, labels = collate(rows[start : start + 32])
            total += loss_of(model, inputs, labels, reduction="sum").item()
            tokens += int((labels != IGNORED).sum())
    model.train()
    return total / tokens


def training_batches(
    tokenizer: Tokenizer, settings: Settings, held_out: frozenset[str]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Generate batches of fresh stories.

    Args:
        tokenizer: The tokenizer.
        settings: The seed and the sizes.
        held_out: Texts to leave out.

    Yields:
        Inputs and labels; see `collate`.
    """
    fresh = (s for s in stories(TRAINING_SEED + settings.seed) if s.text not in held_out)
    order = random.Random(settings.seed)
    while True:
        pool = list(itertools.islice(fresh, settings.batch_size * settings.pool_batches))
        rows = sorted(encode(tokenizer, pool), key=len)
        starts = list(range(0, len(rows), settings.batch_size))
        order.shuffle(starts)
        for start in starts:
            yield collate(rows[start : start + settings.batch_size])


def learning_rate(settings: Settings, step: int, progress: float) -> float:
    """Return the learning rate: a linear warm-up, times a cosine from the peak to the final rate.

    Args:
        settings: The rates and the warm-up.
        step: The number of the step.
        progress: The share of the run that is done.

    Returns:
        The rate.
    """
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
    rate = settings.final_lr + (settings.peak_lr - settings.final_lr) * cosine
    return rate * min(1.0, (step + 1) / settings.warmup_steps)


def make_optimizer(model: LlamaForCausalLM, settings: Settings) -> torch.optim.AdamW:
    """Make AdamW that decays only the matrices of layers, not norms or embeddings of rare tokens.

    Args:
        model: The model.
        settings: The rates.

    Returns:
        The optimizer.
    """
    decayed: list[torch.nn.Parameter] = []
    undecayed: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_layer_matrix = parameter.ndim == 2 and name.startswith("model.layers.")
        (decayed if is_layer_matrix else undecayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.peak_lr, betas=(0.9, 0.98))


@dataclass
class Progress:
    """The progress of a run: the loss of every step, and the number of training tokens."""

    losses: list[float]
    tokens: int = 0

    def recent(self, window: int = 200) -> float:
        """Return the mean loss of the last steps.

        Args:
            window: How many steps.

        Returns:
            The loss in nats.
        """
        last = self.losses[-window:]
        return sum(last) / len(last)


def fit(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    settings: Settings,
    held_out: frozenset[str],
    *,
    steps: int | None = None,
    minutes: float | None = None,
    log_every: int = 500,
) -> Progress:
    """Train the model in place, for a number of steps or of minutes.

    Args:
        model: The model.
        tokenizer: The tokenizer.
        settings: The seed, sizes and rates.
        held_out: Texts to leave out.
        steps: Number of steps; None if `minutes` is given.
        minutes: Training time; None if `steps` is given.
        log_every: Steps between two lines of the log.

    Returns:
        The progress.

    Raises:
        ValueError: Both or neither of steps and minutes are given.
    """
    if (steps is None) == (minutes is None):
        raise ValueError("give either steps or minutes")
    optimizer = make_optimizer(model, settings)
    done = Progress([])
    start = time.monotonic()
    model.train()
    for step, (inputs, labels) in enumerate(training_batches(tokenizer, settings, held_out)):
        elapsed = time.monotonic() - start
        progress = step / steps if steps is not None else elapsed / (60.0 * (minutes or 0.0))
        if progress >= 1.0:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step, progress)
        loss = loss_of(model, inputs, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done.losses.append(loss.item())
        done.tokens += int((labels != IGNORED).sum())
        if (step + 1) % log_every == 0:
            speed = done.tokens / (time.monotonic() - start)
            print(f"step {step + 1}: loss {done.recent(log_every):.4f}, {speed:.0f} tokens/s", flush=True)
    return done


def run(
    out: Path, settings: Settings, *, steps: int | None = None, minutes: float | None = None
) -> dict[str, Any]:
    """Make the vocabulary, train the model, and write the checkpoint.

    Args:
        out: The checkpoint's folder.
        settings: The seed, sizes and rates.
        steps: See `fit`.
        minutes: See `fit`.

    Returns:
        The training report, for JSON.
    """
    torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(settings.seed)
    out.mkdir(parents=True, exist_ok=True)

    texts = (
        story.text for story in make_stories(settings.vocabulary_stories, VOCABULARY_SEED + settings.seed)
    )
    config = model_config(settings.vocab_size)
    spm = vocabulary.train_vocabulary(texts, settings.vocab_size)
    tokenizer = vocabulary.write(spm, out, config.max_position_embeddings)

    held_out = make_stories(settings.held_out_stories, HELD_OUT_SEED + settings.seed)
    model = LlamaForCausalLM(config)
    done = fit(
        model, tokenizer, settings, frozenset(story.text for story in held_out), steps=steps, minutes=minutes
    )

    held_out_tokens = sum(len(row) - 1 for row in encode(tokenizer, held_out))
    report = {
        "settings": asdict(settings),
        "steps": len(done.losses),
        "stories": len(done.losses) * settings.batch_size,
        "tokens": done.tokens,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training_loss": {
            "first_step": round(done.losses[0], 5),
            "last_200_steps": round(done.recent(200), 5),
        },
        "held_out": {
            "seed": HELD_OUT_SEED + settings.seed,
            "stories": len(held_out),
            "tokens": held_out_tokens,
            "loss": round(evaluate(model, tokenizer, held_out), 5),
            "sample_stories": settings.sample_stories,
            "sample_loss": round(evaluate(model, tokenizer, held_out[: settings.sample_stories]), 5),
            # The mean information of the grammar's own choices: no less than its entropy.
            "grammar_nats_per_token": round(sum(story.nats for story in held_out) / held_out_tokens, 5),
        },
        "torch": torch.__version__,
    }
    model.generation_config = GenerationConfig(
        bos_token_id=vocabulary.BOS_ID,
        eos_token_id=vocabulary.EOS_ID,
        pad_token_id=vocabulary.PAD_ID,
        do_sample=False,
    )
    model.save_pretrained(out)
    (out / "training_report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    parser = Parser(prog="tinyllama.demo.train", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int, help="optimizer steps (repeatable)")
    length.add_argument("--minutes", type=float, help="training time (not repeatable)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocab-size", type=int, default=Settings.vocab_size)
    parser.add_argument("--threads", type=int, default=Settings.threads, help="of PyTorch, in one operator")

    def body() -> None:
        arguments = parser.parse_args(argv)
        settings = Settings(seed=arguments.seed, vocab_size=arguments.vocab_size, threads=arguments.threads)
        report = run(arguments.out, settings, steps=arguments.steps, minutes=arguments.minutes)
        print(json.dumps(report, indent=2))

    return command.run("train", body)


if __name__ == "__main__":
    raise SystemExit(main())
