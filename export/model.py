"""A model's structure and computed buffers, built by transformers from `config.json`, without weights."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache

from export import gpt_neo
from export.attention import NAMES, blocks_of
from export.config import CheckpointConfig
from export.families import Family, family_of
from export.loading_flags import defining_file, is_trusted, needs_code_reason
from export.mask_rules import CAUSAL, MaskRule, rules_of
from export.options import GROUPED, check_length, parse_attention
from export.preflight import check_model
from export.rotary import fix_frequencies
from export.stored_names import match_names
from export.tied_parameters import have_equal_numbers
from export.trial_run import Trial, trial_run
from o2o.errors import ModelError, UsageError
from o2o.operators.masks import LOWEST
from o2o.weights.checkpoint import open_checkpoint
from o2o.weights.weight_source import WeightSource


class LanguageModel:
    """A decoder-only transformer on the meta device; every call takes its parameters as arguments.

    Buffers that the model computes (rotary frequencies) are real. Tied parameters are one parameter, under
    the first of their names.

    Attributes:
        parameters: {name: shape}, in the model's order.
        aliases: {name: its other names}, for tied parameters.
        layers: Number of transformer layers.
        query_heads: N, the most of a layer.
        family: The rules of its model family.
        attn_implementation: The argument.
        ties, are_ties_equal: See `export.traced_graph.StoredParameters`; set by `read`.
        has_core_operator: Whether attention is `o2o.attention`: each key must be in the row of its position.
    """

    def __init__(self, config: Any, attn_implementation: str = "eager", context: int | None = None) -> None:
        """Build the model's structure.

        Args:
            config: transformers' configuration.
            attn_implementation: `grouped`, `flash`, `flash:Q,KV`, or a name that transformers knows. A model
                that does not use transformers' attention interface has eager attention instead of the first
                three.
            context: S, the capacity of its graphs, for rotary frequencies that depend on it, see
                `export.rotary`; None for its `max_position_embeddings`.

        Raises:
            ModelError: transformers cannot build this architecture, or it has no attention heads.
        """
        self.attn_implementation = attn_implementation
        kind, self._blocks = parse_attention(attn_implementation)
        hook = _ATTENTION_HOOKS.get(config.model_type) if kind in NAMES else None
        if kind in NAMES and hook is None and not _uses_attention_interface(config):
            kind = "eager"
        self.has_core_operator = kind in NAMES
        self._implementation = "eager" if hook else NAMES.get(kind, kind)
        self.config = config
        self.kind: str = config.model_type
        self._checkpoint_config = CheckpointConfig(config.to_dict(), self.kind)
        check_model(self._checkpoint_config, self.kind)
        self.family: Family = family_of(self._checkpoint_config)
        try:
            with torch.device("meta"):
                self.module = AutoModelForCausalLM.from_config(
                    config,
                    dtype=torch.float32,
                    attn_implementation=self._implementation,
                    trust_remote_code=is_trusted(),
                ).eval()
        except Exception as error:
            reason = summarize_error(error)
            raise ModelError(f"transformers cannot build this {self.kind} model{reason}") from error
        _compute_buffers(self.module)
        self._context = context or self._checkpoint_config.positions or 1
        fix_frequencies(self.module, self._context)
        if hook:
            hook(self.module, NAMES[kind])

        self.layers: int = self._checkpoint_config.layers
        self.query_heads: int = self._checkpoint_config.heads

        self.ties: list[list[str]] = []
        self.are_ties_equal = True
        self.parameters: dict[str, tuple[int, ...]] = {}
        self.aliases: dict[str, list[str]] = {}
        first_name: dict[int, str] = {}
        for name, tensor in self.module.state_dict(keep_vars=True).items():
            first = first_name.setdefault(id(tensor), name)
            if first == name:
                self.parameters[name] = tuple(tensor.shape)
            else:
                self.aliases.setdefault(first, []).append(name)

    @classmethod
    def read(
        cls,
        directory: str | os.PathLike[str],
        attn_implementation: str = "eager",
        context: int | None = None,
    ) -> LanguageModel:
        """Build the model of `directory/config.json`.

        Tied parameters that are stored with different values are separate, as in transformers.

        Args:
            directory: The checkpoint's folder.
            attn_implementation: See `__init__`.
            context: See `__init__`.

        Returns:
            The model without weights.

        Raises:
            ModelError: transformers does not know the configuration, or cannot build its architecture.
        """
        config = read_config(directory)
        model = cls(config, attn_implementation, context)
        if not model.aliases:
            return model
        try:
            tensors = open_checkpoint(directory).tensors
        except ModelError:
            return model  # a configuration without weights
        ties = _stored_ties(model, tensors)
        are_equal = have_equal_numbers(ties, tensors)
        if not are_equal:
            config.tie_word_embeddings = False
            config.get_text_config(decoder=True).tie_word_embeddings = False
            model = cls(config, attn_implementation, context)
        model.ties, model.are_ties_equal = ties, are_equal
        return model

    def __call__(
        self,
        weights: Sequence[torch.Tensor],
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        mask: torch.Tensor | dict[str, torch.Tensor],
        cache: Cache,
    ) -> torch.Tensor:
        """Compute the logits.

        Args:
            weights: One tensor for each of `parameters`, in that order.
            input_ids: int64 [B, T].
            position_ids: int64 [B, T].
            mask: Additive float [B, 1, T, number of keys], 0 where a key is visible, or the masks of
                `masks_of`.
            cache: Its `update` receives the rotated keys and the values [B, K, T, H] of each layer.

        Returns:
            float32 [B, T, V].
        """
        if self._trial.takes_padding_mask and isinstance(mask, torch.Tensor):
            mask = torch.ones(mask.shape[0], mask.shape[-1])
        with rules_of([rule for _, rule in self._rules_of_calls]):
            return self._call(weights, input_ids, position_ids, mask, cache)

    def _call(
        self,
        weights: Sequence[torch.Tensor],
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        mask: torch.Tensor | dict[str, torch.Tensor] | None,
        cache: Cache,
    ) -> torch.Tensor:
        """`__call__` with the mask that the model takes."""
        with blocks_of(self._blocks):
            result = torch.func.functional_call(
                self.module,
                dict(zip(self.parameters, weights, strict=True)),
                (input_ids,),
                {
                    "position_ids": position_ids,
                    "attention_mask": mask,
                    "past_key_values": cache,
                    "use_cache": True,
                },
            )
        return result.logits

    def dummies(self) -> tuple[torch.Tensor, ...]:
        """Make a tensor for each parameter that takes no memory.

        Returns:
            One tensor of each parameter's shape; all strides are 0.
        """
        return tuple(torch.zeros(()).expand(shape) for shape in self.parameters.values())

    @functools.cached_property
    def _trial(self) -> Trial:
        return trial_run(self._call, self.dummies(), self._implementation)

    @functools.cached_property
    def _rules_of_calls(self) -> list[tuple[int, MaskRule]]:
        """(layer, rule) of each call of `o2o.attention`; empty without that operator."""
        masks = self._trial.masks
        return masks.rules_by_attention(self._longest) if masks and self.has_core_operator else []

    @functools.cached_property
    def mask_rules(self) -> list[MaskRule]:
        """Which keys the queries of each layer see, as far as masks decide it."""
        if self._rules_of_calls:
            first = dict(reversed(self._rules_of_calls))
            return [first.get(layer, CAUSAL) for layer in range(self.layers)]
        masks = self._trial.masks
        rules = dict.fromkeys(masks.rules_by_mask(self._longest)) if masks else {}
        if len(rules) < 2:
            return [*rules, CAUSAL][:1] * self.layers
        by_kind = {kind: next(filter(matches, rules), CAUSAL) for kind, matches in _KINDS.items()}
        kinds = self._checkpoint_config.layer_types
        if len(kinds) != self.layers:
            raise ModelError(
                f"config.json of this {self.kind} model has no `layer_types`, which say the layers with a "
                "window: use --attn-implementation grouped"
            )
        return [by_kind.get(kind, CAUSAL) for kind in kinds]

    @property
    def _longest(self) -> int:
        """A context that shows every rule at its edges."""
        config = self._checkpoint_config
        return max(config.positions or 0, 4 * (config.sliding_window or 0) + 3)

    def masks_of(
        self, mask: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Return the masks of all layers, as the model takes them.

        `o2o.attention` has the rule of each layer itself. Other attention gets its window by the mask.

        Args:
            mask: Additive float32 [1, 1, T, number of keys], causal.
            queries: int64 [T], the position of each query.
            keys: int64 [number of keys], the position of each key.

        Returns:
            One mask, or one for each kind of layer.
        """
        if self.has_core_operator or self._trial.takes_padding_mask:
            return mask
        rules = self.mask_rules
        masks = {
            rule: torch.where(rule.hidden(queries[:, None], keys), LOWEST, mask)
            if rule.limits(len(keys))
            else mask
            for rule in dict.fromkeys(rules)
        }
        if len(masks) == 1:
            return masks[rules[0]]
        return {
            kind: masks[rule] for kind, rule in zip(self._checkpoint_config.layer_types, rules, strict=True)
        }

    @property
    def cache_shapes(self) -> Sequence[tuple[int, int]]:
        """(number of heads, size of a head) of the cached rows: key 0, value 0, key 1, ..."""
        if self._trial.caches:
            return self._trial.caches
        return [(K, H) for _, K, H in self._checkpoint_config.attention_layers for _ in ("key", "value")]

    @property
    def rope_choices(self) -> list[str]:
        """What rotary embeddings that depend on the context have: see `export.config.Rope.choice`."""
        config = self._checkpoint_config
        choices = (rope.choice(self._context, config.positions) for rope in config.ropes)
        return list(dict.fromkeys(choice for choice in choices if choice))

    @property
    def max_positions(self) -> int | None:
        """The longest context in tokens; None for no limit."""
        return self._checkpoint_config.positions

    def check_length(self, tokens: int) -> None:
        """Check that the model can see a context in full.

        Args:
            tokens: The length of the context.

        Raises:
            UsageError: See `export.options.check_length`; or the window of the model's layers is not known.
        """
        check_length(self._checkpoint_config, tokens, "a context of")
        window = self._checkpoint_config.sliding_window
        if not window or tokens <= window:
            return
        if self._trial.masks is None or not (
            self.has_core_operator or any(map(CAUSAL.__ne__, self.mask_rules))
        ):
            raise UsageError(
                f"a context of {tokens}: with attention implementation {self.attn_implementation} this "
                f"{self.kind} model does not show which layers have its window of {window} tokens: use "
                f"{window} or less, or --attn-implementation {GROUPED}"
            )


_ATTENTION_HOOKS: dict[str, Callable[[Any, str], None]] = {"gpt_neo": gpt_neo.use_interface}
"""Families whose layers do not use the interface by themselves, and what makes them use it."""
_KINDS: dict[str, Callable[[MaskRule], bool]] = {
    "full_attention": lambda rule: rule == CAUSAL,
    "sliding_attention": lambda rule: rule.window is not None,
    "chunked_attention": lambda rule: rule.chunk is not None,
}
"""transformers' kinds of layers, and the rule of each."""


def _uses_attention_interface(config: Any) -> bool:
    """Whether the model looks its attention up in transformers' `AttentionInterface`."""
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    module = sys.modules.get(getattr(model_class, "__module__", ""))
    return module is None or hasattr(module, "ALL_ATTENTION_FUNCTIONS")


@torch.no_grad()
def _compute_buffers(model: Any) -> None:
    """Replace the buffers on the meta device by real ones.

    The model's `_init_weights` fills them, as in transformers itself. Raises ModelError if one stays empty.
    """
    stored = set(model.state_dict())
    owners: dict[str, Any] = {}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        # The innermost model that contains the module, as in `initialize_weights` of transformers.
        owner = module if isinstance(module, PreTrainedModel) else owners[path.rpartition(".")[0]]
        owners[path] = owner
        empty = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        empty = [name for name in empty if prefix + name not in stored]
        if not empty:
            continue
        for name in empty:
            unset = torch.empty_like(getattr(module, name), device="cpu")
            if unset.is_floating_point():
                unset.fill_(torch.nan)
            setattr(module, name, unset)
        try:
            owner._init_weights(module)
        except Exception as error:
            raise ModelError(
                f"{model.config.model_type}: transformers cannot compute the buffers of {path}, so export "
                f"does not support this architecture{summarize_error(error)}"
            ) from error
        for name in empty:
            if getattr(module, name).isnan().any():
                raise ModelError(
                    f"{model.config.model_type}: transformers does not compute the buffer {prefix}{name}: "
                    f"export does not support this architecture"
                )


def read_config(directory: str | os.PathLike[str]) -> Any:
    """Read a checkpoint's configuration with transformers. Code of the checkpoint runs only if it is trusted.

    Args:
        directory: The checkpoint's folder.

    Returns:
        transformers' configuration.

    Raises:
        ModelError: transformers does not know the configuration.
    """
    kind = CheckpointConfig.read(directory).fields.get("model_type")
    if (path := defining_file(kind)) is not None:
        from export.authoring.adapter import register

        register(str(kind), path)
    try:
        return AutoConfig.from_pretrained(
            Path(directory), local_files_only=True, trust_remote_code=is_trusted()
        )
    except Exception as error:
        if not is_trusted():
            config = CheckpointConfig.read(directory)
            if config.needs_code:
                raise ModelError(f"{directory}: {needs_code_reason(config.model_type)}") from error
        file = Path(directory) / "config.json"
        raise ModelError(f"{file}: transformers cannot read it{summarize_error(error)}") from error


def _stored_ties(model: LanguageModel, tensors: Mapping[str, WeightSource]) -> list[list[str]]:
    """The names of the stored tensors of each tied parameter that is stored more than once."""
    stored = match_names(model.module, tensors).of_parameters
    groups = [
        [stored[one] for one in (name, *others) if one in stored] for name, others in model.aliases.items()
    ]
    return [group for group in groups if len(group) > 1]


def summarize_error(error: BaseException) -> str:
    """Summarize an exception of another library for the end of a one-line message.

    Args:
        error: The exception.

    Returns:
        The first line of its message after a colon if it is a sentence, which may help; else how to see it.
    """
    lines = str(error).strip().splitlines()
    if isinstance(error, ValueError | AssertionError | OSError) and lines and lines[0].count(" ") >= 3:
        return f": {lines[0].rstrip('.:')}"
    return " (--debug shows its error)"
