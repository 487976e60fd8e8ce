"""The Python file of a model of one's own, and what it must define.

    get_model_config(fields)   the configuration, from the fields of config.json ({} without that file); a
                               function without parameters for a model of one size
    build_model(config)        the model, a `torch.nn.Module`; see `export.authoring.building_blocks`
    TENSOR_NAMES               optional: the names of stored tensors, see `export.authoring.tensor_names`;
                               or a function of the configuration, `tensor_names(config)`
    read_checkpoint(path)      optional: (fields, {name: tensor}) of a file format of one's own

The file runs because the user names it with `--model-file`, or because it belongs to this package.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from export.authoring.meta_parameters import meta_parameters
from export.authoring.tensor_names import TensorNames
from o2o.errors import ModelError, O2oError, UsageError
from o2o.weights.checkpoint import open_weights
from o2o.weights.weight_source import WeightSource

NEEDED = ("get_model_config", "build_model")
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings")
PER_LAYER = ("num_attention_heads", "num_key_value_heads", "head_dim")


@dataclass(frozen=True)
class ModelFile:
    """A loaded model file.

    Attributes:
        path: The file.
        module: Its Python module.
    """

    path: Path
    module: ModuleType

    def tensor_names(self, config: Any) -> TensorNames:
        """Return its table of names.

        Args:
            config: What `config` returned.

        Returns:
            `TENSOR_NAMES`, or what `tensor_names` returns; empty if it has neither.

        Raises:
            ModelError: The function fails.
        """
        function = getattr(self.module, "tensor_names", None)
        with reports_line(self.path):
            names: TensorNames = function(config) if function else getattr(self.module, "TENSOR_NAMES", {})
        return names

    def config(self, fields: Mapping[str, Any]) -> Any:
        """Make the configuration.

        Args:
            fields: The fields of config.json; empty without that file.

        Returns:
            The configuration, with all sizes of `ModelConfig`.

        Raises:
            ModelError: The function fails, or a size is missing or wrong.
        """
        with reports_line(self.path):
            function = self.module.get_model_config
            config = function(dict(fields)) if inspect.signature(function).parameters else function()
        for name in SIZES:
            if not _is_size(getattr(config, name, None)):
                raise ModelError(f"{self.path}: the configuration needs {name}, a positive integer")
        layers = int(config.num_hidden_layers)
        per_layer: dict[str, list[int]] = {}
        for name in PER_LAYER:
            value: Any = getattr(config, name, None)
            numbers = per_layer[name] = list(value) if isinstance(value, list | tuple) else [value] * layers
            if len(numbers) != layers or not all(map(_is_size, numbers)):
                raise ModelError(
                    f"{self.path}: the configuration needs {name}, a positive integer or one for each of the "
                    f"{layers} layers"
                )
        for layer, (heads, key_value_heads) in enumerate(
            zip(*(per_layer[name] for name in PER_LAYER[:2]), strict=True)
        ):
            if heads % key_value_heads:
                raise ModelError(
                    f"{self.path}: layer {layer} has {heads} query heads, which {key_value_heads} key/value "
                    "heads cannot share evenly"
                )
        return config

    def read_checkpoint(self, path: Path) -> tuple[Mapping[str, Any], Mapping[str, WeightSource]]:
        """Find the tensors of a checkpoint.

        Args:
            path: A folder, with or without config.json, or a file of weights.

        Returns:
            The fields of config.json, empty without that file, and the tensors by name. Only headers are
            read.

        Raises:
            ModelError: The function of the file fails or returns something else, or a file is damaged.
            OSError: A file cannot be read.
        """
        if (function := getattr(self.module, "read_checkpoint", None)) is None:
            return _fields(path / "config.json"), open_weights(path)
        with reports_line(self.path):
            result = function(path)
        try:
            fields, tensors = result
            if not all(isinstance(tensor, WeightSource) for tensor in tensors.values()):
                raise TypeError
            return dict(fields), tensors
        except (AttributeError, TypeError, ValueError):
            raise ModelError(
                f"{self.path}: read_checkpoint has to return the fields of a configuration and the tensors: "
                "({name: value}, {name: o2o.weights.stored_tensor.StoredTensor})"
            ) from None

    def build(self, config: Any) -> nn.Module:
        """Build the model, on torch's current default device.

        On the meta device, parameters have no numbers, but buffers have: so a model may compute them from its
        configuration, as it is usual.

        Args:
            config: What `config` returned.

        Returns:
            The model.

        Raises:
            ModelError: The function fails, or returns something else.
        """
        on_meta = torch.empty(0).device.type == "meta"
        with reports_line(self.path), meta_parameters() if on_meta else contextlib.nullcontext():
            model = self.module.build_model(config)
        if not isinstance(model, nn.Module):
            raise ModelError(
                f"{self.path}: build_model returned {type(model).__name__}: return a torch.nn.Module"
            )
        return model


def load(path: Path) -> ModelFile:
    """Run a model file.

    Args:
        path: The file.

    Returns:
        Its module.

    Raises:
        UsageError: There is no such file.
        ModelError: It fails, or does not define what is needed.
    """
    if not path.is_file():
        raise UsageError(f"--model-file {path}: no such file")
    name = f"o2o_model_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"--model-file {path}: give a Python file, such as my_model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    if (folder := str(path.parent)) not in sys.path:
        sys.path.append(folder)  # for modules beside it
    with reports_line(path):
        spec.loader.exec_module(module)
    for needed in NEEDED:
        if not callable(getattr(module, needed, None)):
            raise ModelError(f"{path} defines no function {needed}: see docs/author-a-model.md")
    return ModelFile(path, module)


@contextlib.contextmanager
def reports_line(path: Path) -> Iterator[None]:
    """Turn an exception of a model file into one line that names the place.

    Args:
        path: The file.

    Yields:
        Nothing.

    Raises:
        ModelError: The block raised an exception.
    """
    try:
        yield
    except O2oError:
        raise
    except SyntaxError as error:
        place = f"{error.filename}:{error.lineno}" if error.filename else str(path)  # none for binary data
        raise ModelError(f"{place}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        trace = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in trace if Path(frame.filename).parent == path.parent]
        place = f"{own[-1].filename}:{own[-1].lineno}" if own else str(path)
        text = (str(error).strip() or "no message").splitlines()[0]
        raise ModelError(f"{place}: {type(error).__name__}: {text}") from error


def _fields(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ModelError(f"{path} is not a JSON object")
    return fields


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
