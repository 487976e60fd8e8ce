"""The Python file of a model of one's own, and what it must define.

    get_model_config(fields)   the configuration, from the fields of config.json ({} without that file)
    build_model(config)        the model, a `torch.nn.Module`; see `export.authoring.building_blocks`
    TENSOR_NAMES               optional: the names of stored tensors, see `export.authoring.tensor_names`;
                               or a function of the configuration, `tensor_names(config)`

The file runs because the user names it with `--model-file`, or because it belongs to this package.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from export.authoring.tensor_names import TensorNames
from o2o.errors import ModelError, O2oError, UsageError

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
            config = self.module.get_model_config(dict(fields))
        for name in SIZES:
            if not _is_size(getattr(config, name, None)):
                raise ModelError(f"{self.path}: the configuration needs {name}, a positive integer")
        layers = int(config.num_hidden_layers)
        for name in PER_LAYER:
            value = getattr(config, name, None)
            numbers = list(value) if isinstance(value, list | tuple) else [value] * layers
            if len(numbers) != layers or not all(map(_is_size, numbers)):
                raise ModelError(
                    f"{self.path}: the configuration needs {name}, a positive integer or one for each of the "
                    f"{layers} layers"
                )
        return config

    def build(self, config: Any) -> nn.Module:
        """Build the model, on torch's current default device.

        Args:
            config: What `config` returned.

        Returns:
            The model.

        Raises:
            ModelError: The function fails, or returns something else.
        """
        with reports_line(self.path):
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
        raise ModelError(f"{error.filename}:{error.lineno}: {error.msg}") from error
    except Exception as error:
        trace = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in trace if frame.filename == str(path)]
        place = f"{path}:{lines[-1]}" if lines else str(path)
        text = (str(error).strip() or "no message").splitlines()[0]
        raise ModelError(f"{place}: {type(error).__name__}: {text}") from error


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
