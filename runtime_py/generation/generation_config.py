"""`generation_config.json`: the checkpoint's settings for generation, read as transformers reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from o2o.errors import ModelError, UsageError
from runtime_py.generation import setting_types
from runtime_py.generation.processor_chain import check_ids
from runtime_py.generation.sampling import Sampling
from runtime_py.text.files import Place
from runtime_py.text.json_file import read_json

FILE_NAME = "generation_config.json"
GENAI_CONFIG = "genai_config.json"
DEFAULT_TOP_K = 50
"""`top_k` of transformers where the file samples and has no `top_k`."""


class UnsupportedSettingWarning(UserWarning):
    """A setting of `generation_config.json` has an effect in transformers, but not here."""


@dataclass(frozen=True)
class GenerationConfig:
    """The settings of a checkpoint for generation.

    Attributes:
        sampling: How tokens are chosen.
        eos_token_id: The ids that end a text.
        max_length: The largest number of ids, prompt included; None for no limit.
        max_new_tokens: The largest number of new ids, in place of `max_length`.
        min_length: The smallest number of ids, prompt included.
        min_new_tokens: The smallest number of new ids, in place of `min_length`.
        max_time: Seconds after which a text ends; None for no limit.
        stop_strings: Strings that end a text.
        unsupported: The keys of the file that have no effect here, but have one in transformers.
        path: The file they were read from; None for none.
    """

    sampling: Sampling = field(default_factory=Sampling)
    eos_token_id: tuple[int, ...] = ()
    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int | None = None
    min_new_tokens: int | None = None
    max_time: float | None = None
    stop_strings: tuple[str, ...] = ()
    unsupported: tuple[str, ...] = ()
    path: Place | None = None

    def length_limit(self, prompt_length: int, max_new_tokens: int | None = None) -> int | None:
        """Return the number of ids at which a text ends.

        Args:
            prompt_length: P.
            max_new_tokens: A limit of the caller, in place of those of the file.

        Returns:
            The number of ids, prompt included; None for no limit.

        Raises:
            UsageError: The prompt reaches the `max_length` of the file.
        """
        if max_new_tokens is None:
            max_new_tokens = self.max_new_tokens
        if max_new_tokens is not None:
            return prompt_length + max_new_tokens
        if self.max_length is not None and prompt_length >= self.max_length:
            raise UsageError(
                f"the prompt has {prompt_length} tokens, and max_length in {self.path} is {self.max_length}: "
                f"shorten the prompt, or give --max-new-tokens"
            )
        return self.max_length

    def smallest_length(self, prompt_length: int) -> int:
        """Return the number of ids before which no end of sequence is chosen.

        Args:
            prompt_length: P.

        Returns:
            The number of ids, prompt included; 0 for no such limit.
        """
        if self.min_new_tokens is not None:
            return prompt_length + self.min_new_tokens
        return self.min_length or 0

    def check_ids(self, vocab_size: int) -> None:
        """Check that the token ids of the file belong to the model.

        Args:
            vocab_size: V.

        Raises:
            ModelError: An id is not below V.
        """
        try:
            check_ids(self.sampling, vocab_size)
        except UsageError as error:
            raise ModelError(f"{self.path}: {error}") from error


def read_generation_config(directory: Place) -> GenerationConfig:
    """Read the settings of a checkpoint.

    As in transformers, the file is `generation_config.json` or, where there is none, `config.json`. Beyond
    transformers, `eos_token_id` of `config.json` counts if `generation_config.json` has none. Without both
    files, `genai_config.json` of onnxruntime-genai counts.

    Args:
        directory: The folder of the files.

    Returns:
        The settings. Without a file: greedy decoding without an end.

    Raises:
        ModelError: A file is damaged, or a setting has a wrong type or is out of range.
    """
    path, config_path = directory / FILE_NAME, directory / "config.json"
    if path.exists():
        config = _without_none(read_json(path))
        if "eos_token_id" in config:
            return _parse(config, path)
        eos = _parse(_eos_only(_model_config(config_path)), config_path).eos_token_id
        return replace(_parse(config, path), eos_token_id=eos)
    genai_path = directory / GENAI_CONFIG
    if genai_path.exists() and not config_path.exists():
        return _parse(_genai_config(read_json(genai_path)), genai_path)
    return _parse(_model_config(config_path), config_path)


def _genai_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `genai_config.json` by their names in `generation_config.json`."""
    model, search = (
        part if isinstance(part, Mapping) else {} for part in map(config.get, ("model", "search"))
    )
    return {**_eos_only(_without_none(model)), **_without_none(search)}


def _model_config(path: Place) -> dict[str, Any]:
    """The content of `config.json`; keys that it lacks are those of its text model."""
    config = _without_none(read_json(path))
    parts = (config.get(name) for name in ("decoder", "generator", "text_config"))
    text_config = next((part for part in parts if isinstance(part, Mapping) and part), {})
    merged = _without_none(text_config) | config
    if merged.get("force_bos_token_to_be_generated") and "bos_token_id" in merged:
        merged["forced_bos_token_id"] = merged["bos_token_id"]
    return merged


def _eos_only(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in ("eos_token_id",) if key in config}


def _without_none(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if value is not None}


def _parse(config: Mapping[str, Any], path: Place) -> GenerationConfig:
    try:
        return replace(_checked(config), path=path)
    except UsageError as error:
        raise ModelError(f"{path}: {error}") from error


def _checked(config: Mapping[str, Any]) -> GenerationConfig:
    """Raises UsageError for a setting of a wrong type or out of range."""
    config = dict(config)
    if isinstance(pairs := config.get("sequence_bias"), list):
        config["sequence_bias"] = _biases(pairs)
    for key in sorted(config.keys() & (setting_types.TYPES.keys() - _NOT_IN_FILE)):
        setting_types.check(key, config[key])
    in_file = {field.name for field in fields(Sampling)} - _NOT_IN_FILE
    choice = {"do_sample": False} | {key: value for key, value in config.items() if key in in_file}
    if choice["do_sample"]:
        choice.setdefault("top_k", DEFAULT_TOP_K)
    return GenerationConfig(
        sampling=Sampling(**choice),
        eos_token_id=_tuple(config.get("eos_token_id", ())),
        stop_strings=_tuple(config.get("stop_strings", ())),
        unsupported=tuple(
            key for key, acts in _UNSUPPORTED.items() if key in config and acts(config[key], config)
        ),
        **{key: config[key] for key in _LENGTHS if key in config},
    )


def _biases(pairs: list[Any]) -> Any:
    """The lists of `sequence_bias` as a mapping. Another value is returned: its check refuses it."""
    if not all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], list) for pair in pairs):
        return pairs
    return {tuple(map(_hashable, ids)): bias for ids, bias in pairs}


def _hashable(value: Any) -> Any:
    return str(value) if isinstance(value, list | dict) else value


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


_LENGTHS = ("max_length", "max_new_tokens", "min_length", "min_new_tokens", "max_time")
_NOT_IN_FILE = {"greedy", "seed", "frequency_penalty", "presence_penalty", "logit_bias", "log_probabilities"}
"""Settings of a caller, which `generation_config.json` does not know."""

_UNSUPPORTED: Mapping[str, Callable[[Any, Mapping[str, Any]], bool]] = {
    **dict.fromkeys(
        ("num_beams", "num_beam_groups", "num_return_sequences"), lambda value, config: value > 1
    ),
    "guidance_scale": lambda value, config: value != 1,
    "penalty_alpha": lambda value, config: value > 0 and not config.get("do_sample"),
    **dict.fromkeys(
        (
            *("watermarking_config", "dola_layers", "constraints", "force_words_ids", "token_healing"),
            *("prompt_lookup_num_tokens", "assistant_early_exit", "is_assistant", "use_mtp"),
        ),
        lambda value, config: bool(value),
    ),
}
"""Keys of the file that are not supported, and whether a value has an effect in transformers."""
