"""Input and output of model files: stdin, stdout, files and pipes.

framing         the frame of a file: where its header ends, and its length
source          inputs: a file, a pipe, bytes in memory
external_file   a file of weights that a model names
copying         copies between file descriptors, in the kernel where possible
output          outputs, which appear when they are complete
cache_folder    the folder of what later runs reuse
protobuf_fields the fields of a protobuf message
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from o2o.streams.external_file import ExternalFile
    from o2o.streams.output import open_output
    from o2o.streams.source import FileSource, MemorySource, RangeSource, Source, open_file, open_source

__all__ = [
    "ExternalFile",
    "FileSource",
    "MemorySource",
    "RangeSource",
    "Source",
    "open_file",
    "open_output",
    "open_source",
]


def __getattr__(name: str) -> Any:
    """Import an exported name at its first use: the runtime needs the disk cache only."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = {"ExternalFile": "external_file", "open_output": "output"}.get(name, "source")
    return getattr(import_module(f"o2o.streams.{module}"), name)
