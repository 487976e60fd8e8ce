"""What the installed transformers says about a model type, read from its source without importing it.

Importing transformers imports torch and takes seconds. A model that cannot be converted is refused before.
"""

from __future__ import annotations

import ast
import copy
import functools
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

TABLES = "models/auto/modeling_auto.py"
CAUSAL = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
TASKS = {
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES": "encoder-decoder",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES": "encoder-decoder",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES": "multimodal",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES": "multimodal",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES": "encoder",
    "MODEL_FOR_IMAGE_MAPPING_NAMES": "vision",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES": "vision",
    "MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES": "vision",
    "MODEL_FOR_IMAGE_SEGMENTATION_MAPPING_NAMES": "vision",
    "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES": "vision",
    "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES": "audio",
    "MODEL_FOR_CTC_MAPPING_NAMES": "audio",
    "MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING_NAMES": "audio",
}
"""{table of transformers: what its models are}; a type in several tables is what the first says."""
TEXT_MODELS = {
    "qwen2_vl": "qwen2",
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl": "qwen3",
    "qwen3_vl_text": "qwen3",
}
"""{model type: the model that computes its text part}. Their rotary positions have three axes (mrope), which
are equal for text."""
_ROTATED_PART = re.compile(r'setdefault\("partial_rotary_factor", (?:kwargs\.(?:pop|get)\("\w+", )?([0-9.]+)')


@dataclass(frozen=True)
class Declaration:
    """The declaration of a configuration class of transformers.

    Attributes:
        defaults: {field: value}, for fields whose default is a constant. A checkpoint need not store these.
        aliases: {transformers' common name of a field: the class's own name}, such as
            {"hidden_size": "n_embd"}.
        rotated_part: The part of each head that is rotated by default; None for all of it.
        interleaved_rotation: Whether neighboring elements of a head are rotated together, not its halves.
        post_init: The statements that complete an instance.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    rotated_part: float | None = None
    interleaved_rotation: bool = False
    post_init: tuple[ast.stmt, ...] = ()


def causal_models() -> frozenset[str]:
    """List the model types of causal language models.

    Returns:
        The values of `model_type`; empty if the table cannot be read.
    """
    return frozenset(_tables().get(CAUSAL, {}))


def causal_class(model_type: str) -> str:
    """Return the class of a type's causal language model.

    Args:
        model_type: The `model_type` of config.json.

    Returns:
        Its name, such as `LlamaForCausalLM`; empty if there is none.
    """
    return _tables().get(CAUSAL, {}).get(model_type, "")


def tasks_of(model_type: str) -> frozenset[str]:
    """Return what a model type can be, besides a causal language model.

    Args:
        model_type: The `model_type` of config.json.

    Returns:
        Values of `TASKS`; empty for an unknown type.
    """
    return frozenset(task for table, task in TASKS.items() if model_type in _tables().get(table, {}))


def is_known(model_type: str) -> bool:
    """Check whether transformers has any model of a type.

    Args:
        model_type: The `model_type` of config.json.

    Returns:
        Whether a table lists it, or a class declares it.
    """
    listed = any(model_type in table for table in _tables().values())
    return listed or bool(declaration(model_type).defaults)


@functools.cache
def declaration(model_type: str) -> Declaration:
    """Read the configuration class of a model type.

    Args:
        model_type: The `model_type` of config.json.

    Returns:
        Its declaration; an empty one if there is none.
    """
    for file in _configuration_files(model_type):
        classes = {node.name: node for node in _parsed(file) if isinstance(node, ast.ClassDef)}
        for node in classes.values():
            fields = _constants(node, classes)
            if fields.get("model_type") == model_type:
                aliases = fields.get("attribute_map") or {}
                part = _ROTATED_PART.search(_text(file))
                modeling = file.with_name(file.name.replace("configuration", "modeling"))
                return Declaration(
                    MappingProxyType(fields),
                    MappingProxyType({str(k): str(v) for k, v in aliases.items()}),
                    float(part[1]) if part else None,
                    "::2]" in _text(modeling),
                    _post_init(node, classes),
                )
    return Declaration()


def _constants(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> dict[str, Any]:
    """The constants that a class and its bases of the same file assign."""
    fields: dict[str, Any] = {}
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes and base.id != node.name:
            fields |= _constants(classes[base.id], classes)
    for statement in node.body:
        match statement:
            case (
                ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
                | ast.Assign(targets=[ast.Name(id=name)], value=value)
            ):
                try:
                    fields[name] = _evaluated(value)
                except ValueError:
                    fields.pop(name, None)
    return copy.deepcopy(fields)


def _post_init(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> tuple[ast.stmt, ...]:
    """The body of the `__post_init__` of a class, or of its first base of the same file that has one."""
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__post_init__":
            return tuple(statement.body)
    bases = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id != node.name]
    inherited = (_post_init(classes[name], classes) for name in bases if name in classes)
    return next(filter(None, inherited), ())


def _evaluated(value: ast.expr) -> Any:
    """The value of a constant, or of a product such as `4096 * 32`. Raises ValueError for others."""
    match value:
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _evaluated(left) * _evaluated(right)
    return ast.literal_eval(value)


def _configuration_files(model_type: str) -> Iterator[Path]:
    """The file of a type's configuration: that of its folder, such as `gemma3` for `gemma3_text`."""
    words = model_type.replace("-", "_").replace(".", "_").split("_")
    for folder in _folders():
        for length in range(len(words), 0, -1):
            name = "_".join(words[:length])
            file = folder / "models" / name / f"configuration_{name}.py"
            if name.isidentifier() and file.is_file():
                yield file


@functools.cache
def _tables() -> dict[str, dict[str, str]]:
    """{table: {model type: class}} of transformers' automatic classes."""
    wanted = {CAUSAL, *TASKS}
    for file in (folder / TABLES for folder in _folders()):
        tables = {}
        for node in _parsed(file):
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    if isinstance(target, ast.Name) and target.id in wanted:
                        tables[target.id] = dict(_pairs(node.value))
        if tables:
            return tables
    return {}


def _folders() -> list[Path]:
    """The folders of the installed transformers."""
    spec = importlib.util.find_spec("transformers")
    return [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []


def _parsed(file: Path) -> list[ast.stmt]:
    """The statements of a file; none if it cannot be read."""
    try:
        return ast.parse(_text(file)).body
    except (SyntaxError, ValueError):
        return []


def _text(file: Path) -> str:
    """The text of a file; empty if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _pairs(table: ast.expr) -> Iterator[tuple[str, str]]:
    """All pairs of constants in an expression."""
    for pair in ast.walk(table):
        match pair:
            case ast.Tuple(elts=[ast.Constant(value=key), ast.expr() as value]):
                yield str(key), str(getattr(value, "value", ""))
