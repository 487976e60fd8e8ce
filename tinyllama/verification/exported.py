"""torch.export's programs of the graphs, run with the checkpoint's weights, before conversion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.attention import blocks_of
from export.model import LanguageModel, summarize_error
from export.modules import ExportModule, StaticCacheModule
from export.options import GROUPED
from export.parameter_matching import match_parameters
from o2o.cli.silence_stderr import suppressed_warnings
from o2o.errors import ModelError, O2oError, UsageError
from o2o.operators.core_attention import FlashBlockSizes
from o2o.weights.checkpoint import open_checkpoint
from runtime_py.engines.prefill_plan import Chunk
from tinyllama.verification.trace import Operator, Trace, heads_as_rows, rows, traced_tensors

LINEAR = ("linear", "addmm", "mm", "matmul", "bmm")  # how torch's operators are called


def read_weights(directory: Path) -> list[torch.Tensor]:
    """Read a checkpoint's weights as float32.

    Args:
        directory: The checkpoint's folder.

    Returns:
        The tensors in the order of `LanguageModel.parameters`.
    """
    matched = match_parameters(LanguageModel.read(directory), open_checkpoint(directory))
    return [torch.from_numpy(stored.read_float32()) for stored in matched.values()]


class Exported:
    """A `PromptPredictor`: `StaticCacheModule` for prompts of up to T tokens and for one token, onto
    caches of S rows, as torch.export traces them."""

    def __init__(
        self,
        directory: Path,
        weights: Sequence[torch.Tensor],
        tokens: int,
        capacity: int,
        attn_implementation: str = GROUPED,
        blocks: FlashBlockSizes | None = None,
        label: str = "exported program",
    ) -> None:
        """Trace the programs.

        Args:
            directory: The checkpoint's folder.
            weights: See `read_weights`.
            tokens: T.
            capacity: S.
            attn_implementation: See `LanguageModel`.
            blocks: Block sizes of flash attention; None for adaptive ones.
            label: The name in reports.

        Raises:
            ModelError: The model cannot be traced.
            UsageError: The model cannot see S tokens.
        """
        self.label = label
        self.capacity = capacity
        self._length = tokens
        model = LanguageModel.read(directory, attn_implementation, capacity)
        self.vocab_size: int = model.config.get_text_config(decoder=True).vocab_size
        self._names = list(model.parameters)
        self._weights = tuple(weights)
        self._cache_shapes = [(1, K, capacity, H) for K, H in model.cache_shapes]
        with suppressed_warnings(), blocks_of(blocks):
            self._prefill, self._decode = (
                _traced(StaticCacheModule(model, name, count, capacity))
                for name, count in ((f"prefill_{tokens}", tokens), ("decode", 1))
            )
        self._caches: tuple[torch.Tensor, ...] = ()

    def plan(self, length: int, num_cached: int = 0) -> list[Chunk]:
        """See `EngineSession`: one run."""
        if length > self._length:
            raise UsageError(f"{length} tokens for a program of {self._length}")
        return [Chunk(self._length, 0, length)]

    def scores(self, tokens: Sequence[int]) -> np.ndarray:
        """See `PromptPredictor`."""
        return self._start(tokens)["logits"]

    def prefill(self, tokens: Sequence[int], num_cached: int = 0) -> np.ndarray:
        """See `EngineSession`. All are read."""
        return self.scores(tokens)[-1]

    def decode(self, token: int, position: int) -> np.ndarray:
        """See `EngineSession`."""
        return self._run(self._decode, [token], position)["logits"][-1]

    def trace(self, prompt: Sequence[int], generated: Sequence[int] = ()) -> Trace:
        """See `Predictor`."""
        if not generated:
            return self._start(prompt, watch=True)
        self._start(prompt)
        for position, token in enumerate(generated[:-1], len(prompt)):
            self.decode(token, position)
        return self._run(self._decode, [generated[-1]], len(prompt) + len(generated) - 1, watch=True)

    def close(self) -> None:
        """See `EngineSession`."""

    def _start(self, tokens: Sequence[int], watch: bool = False) -> Trace:
        """Read a prompt, padded at its end, onto empty caches."""
        self.plan(len(tokens))
        self._caches = tuple(torch.zeros(shape) for shape in self._cache_shapes)
        padded = [*tokens, *[0] * (self._length - len(tokens))]
        trace = self._run(self._prefill, padded, 0, watch)
        return {name: numbers[: len(tokens)] for name, numbers in trace.items()}

    @torch.no_grad()
    def _run(
        self, program: torch.fx.GraphModule, tokens: Sequence[int], position: int, watch: bool = False
    ) -> Trace:
        """The logits [T, V]; with `watch` all intermediate tensors. Updates the caches."""
        arguments = torch.tensor([list(tokens)]), torch.tensor([position]), self._caches, self._weights
        trace: Trace = {}
        if watch:
            watching = Watching(program, self._names)
            flat = torch.utils._pytree.tree_leaves(arguments)
            logits, *caches = watching.run(*flat, enable_io_processing=False)
            trace = watching.trace
        else:
            logits, *caches = program(*arguments)
        self._caches = tuple(caches)
        return trace | {"logits": logits[0].numpy()}


class Watching(torch.fx.Interpreter):
    """Runs a program and records its intermediate tensors."""

    def __init__(self, program: torch.fx.GraphModule, parameters: Sequence[str]) -> None:
        """parameters: the names of the last inputs."""
        super().__init__(program)
        self.trace: Trace = {}
        nodes = list(program.graph.nodes)
        inputs = [node for node in nodes if node.op == "placeholder"]
        operators = [
            Operator(node, tuple(node.all_input_nodes), _operator(node) in LINEAR)
            for node in nodes
            if node.op == "call_function" and node.all_input_nodes
        ]
        weights = dict(zip(inputs[-len(parameters) :], parameters, strict=True))
        constants = [node for node in nodes if node.op == "get_attr"]
        self._names: dict[Any, list[str]] = {}
        for name, node in traced_tensors(operators, weights, constants).items():
            self._names.setdefault(node, []).append(name)
        self._written = 0  # number of caches written so far

    def run_node(self, node: torch.fx.Node) -> Any:
        result = super().run_node(node)
        if _operator(node) == "dynamic_update_slice":
            layer, what = divmod(self._written, 2)
            update = self.env[node.args[1]]  # type: ignore[index]
            self.trace[f"model.layers.{layer}.{('keys', 'values')[what]}"] = heads_as_rows(update.numpy())
            self._written += 1
        for name in self._names.get(node, ()):
            self.trace[name] = rows(result.numpy())
        return result


def _operator(node: torch.fx.Node) -> str:
    """`linear` for `aten.linear.default`."""
    return str(node.target).split(".")[1] if node.op == "call_function" and "." in str(node.target) else ""


def _traced(graph: ExportModule) -> Any:
    """torch.export's program of `graph`, ready to run. Raises ModelError."""
    try:
        with torch.no_grad():
            program = torch.export.export(graph.eval(), graph.example(), strict=False)
        return program.module(check_guards=False)
    except O2oError:
        raise
    except Exception as error:
        kind = graph.model.kind
        raise ModelError(
            f"torch.export cannot trace {graph.signature} of this {kind} model{summarize_error(error)}"
        ) from error
