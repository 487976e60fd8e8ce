"""The contract of a model file: the role of each input and output, as JSON metadata.

In memory the role of a value is `value.meta["role"]`. All else in the contract (names, shapes, dtypes) is
read from the graph when the file is written, so it cannot become stale. Only a filter that changes a layout
replaces the role.

    {"version": 1, "signatures": {"decode": {
        "inputs":  [{"name": "input_ids", "role": "tokens", "dtype": "int64", "shape": [1, 1]},
                    {"name": "past_key_0", "role": "key_cache", "layer": 0, "layout": "BNTH", ...}],
        "outputs": [{"name": "logits", "role": "logits", ...}]}}}

To add a role, extend `Kind` here. Roles are attached by `export.modules`. They are used by `o2o.signatures`
(decode, prefill, bucket), `o2o.lower`, `o2o.filters.sign_ai_edge` and `runtime_py.model.contract` (inputs of
an engine).

A window cache (`capacity`) holds a part of the text: row r has position b + r, where the caller chooses b. So
`window_row` is the position of the first token minus b. Rows from b + r on, up to the last token, must hold
what queries see. The caller moves rows to the front where a run needs more rows than there are.

A layout names the axes: B batch, N heads (key/value heads for a cache), T tokens, H head dimension. Filters
use BNTH and BTNH. `o2o.lower.onert` and AI Edge's newer exporter write value caches as BNHT.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from o2o import metadata
from o2o.errors import ModelError

if TYPE_CHECKING:  # the runtime reads contracts without onnx_ir, which takes long to import
    import onnx_ir as ir

    from o2o.model import Model

METADATA_NAME = "o2o.contract"
VERSION = 1

Kind = Literal[
    "tokens",
    "position",
    "window_row",
    "mask",
    "key_cache",
    "value_cache",
    "key",
    "value",
    "logits",
    "last_position",
    "length",
    "use_cache",
    "num_logits",
]
_KINDS = frozenset(get_args(Kind))
NUMBERS = ("position", "last_position", "length", "window_row", "num_logits")
"""Kinds of inputs that are integers computed from the place of a run in the text."""
INPUTS = ("tokens", *NUMBERS, "mask", "use_cache")
"""Kinds of inputs that are no caches."""
NUM_LOGITS: Final = "num_logits"
"""The kind of an input that says how many of the last tokens get logits, and its name in ONNX."""
Layout = Literal["BNTH", "BTNH"]
OnertLayout = Literal["BNHT"]
Slot = tuple[str, int]
"""One of a model's KV caches: ("key" or "value", layer)."""

_SIZES = ("window", "chunk", "capacity")
_ROWS_OF: dict[Kind, Kind] = {"key_cache": "key", "value_cache": "value"}


@dataclass(frozen=True)
class Role:
    """The role of an input or output in a language model.

    Attributes:
        kind: `tokens`: token ids [B, T]. `position`: the position of the first token [1], or consecutive
            positions [T]. `window_row`: the row of the window caches that the first token is written to, [1].
            `last_position`: the position of the last token [1]. `length`: the number of tokens up to the
            last one of the run [1].
            `mask`: which keys a query sees, [.., T, S]: bool, 1 or 0, or additive 0 or -inf. Of rank 2,
            [B, S]: which keys are tokens.
            `use_cache`: a bool [1] that is false for the first run of a text, which takes no caches.
            `num_logits`: how many of the last tokens get logits, a number; 0 for all.
            `key_cache` and `value_cache`: KV caches, inputs. `key` and `value`: new rows of a
            cache or the whole cache, outputs; keys are rotated. `logits`: [B, T, V]; a graph that only fills
            caches has none.
        layer: The layer of keys, values and caches.
        layout: The axes of keys, values and caches.
        window: How many keys a query of this layer sees at most, the last ones up to its own; None for all.
        chunk: The size of the chunks of positions that attention of this layer is confined to; None for none.
        capacity: Of a window cache: S, the number of positions of a text. The cache has fewer rows. None
            for a full cache, which has a row for each position.
        rope: Of a position: what its rotary embeddings have, if that depends on the capacity; for people.
    """

    kind: Kind
    layer: int | None = None
    layout: Layout | OnertLayout | None = None
    window: int | None = None
    chunk: int | None = None
    capacity: int | None = None
    rope: str | None = field(default=None, compare=False)

    @property
    def is_cache(self) -> bool:
        """Whether this is a KV cache, which a graph takes as input."""
        return self.kind in _ROWS_OF

    @property
    def is_rows(self) -> bool:
        """Whether these are keys or values, which a graph returns: new rows of a cache, or all of it."""
        return self.kind in _ROWS_OF.values()

    @property
    def output_role(self) -> Role:
        """The role of the rows that a graph returns for this cache: `key` for `key_cache`."""
        return replace(self, kind=_ROWS_OF.get(self.kind, self.kind))

    @property
    def slot(self) -> Slot:
        """The slot of this cache, or of the cache that these rows belong to."""
        return _ROWS_OF.get(self.kind, self.kind), self.layer or 0


def role_of(value: ir.Value) -> Role | None:
    """Return the role of a value.

    Args:
        value: An input or output of a graph.

    Returns:
        Its role; None if it has none.
    """
    return value.meta.get("role")


def _describe(name: str, value: ir.Value) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name}
    role = role_of(value)
    if role is not None:
        entry["role"] = role.kind
        if role.layer is not None:
            entry["layer"] = role.layer
        if role.layout is not None:
            entry["layout"] = role.layout
        entry |= {name: size for name in (*_SIZES, "rope") if (size := getattr(role, name)) is not None}
    entry["dtype"] = str(value.dtype.numpy()) if value.dtype is not None else None
    entry["shape"] = _shape(value)
    return entry


def _describe_input(name: str, value: ir.Value) -> dict[str, Any]:
    """The entry of an input. `unused`: it has no role, and no operator reads it."""
    entry = _describe(name, value)
    is_unused = "role" not in entry and not value.uses() and not value.is_graph_output()
    return entry | ({"unused": True} if is_unused else {})


def _describe_output(name: str, value: ir.Value) -> dict[str, Any]:
    """The entry of an output. One that is also a cache input, updated in place, returns that cache."""
    entry = _describe(name, value)
    role = role_of(value)
    return entry | ({"role": role.output_role.kind} if role is not None and role.is_cache else {})


def _shape(value: ir.Value) -> list[int | str] | None:
    """The shape for JSON. A symbolic dimension (ONNX) is its name."""
    from o2o.model import dims_of

    dims = dims_of(value)
    return None if dims is None else list(dims)


def contract_of(model: Model) -> dict[str, Any]:
    """Return the contract of a model in its present state.

    Args:
        model: The model.

    Returns:
        An object for JSON. Signatures without any role are omitted.
    """
    signatures = {}
    for signature in model.signatures:
        values = [*signature.inputs.values(), *signature.outputs.values()]
        if any(role_of(value) is not None for value in values):
            signatures[signature.name] = {
                "inputs": [_describe_input(name, value) for name, value in signature.inputs.items()],
                "outputs": [_describe_output(name, value) for name, value in signature.outputs.items()],
            }
    return {"version": VERSION, "signatures": signatures}


def dumps(model: Model) -> bytes | None:
    """Return the metadata entry of a model's contract.

    Args:
        model: The model.

    Returns:
        JSON; None for a model without roles.
    """
    contract = contract_of(model)
    return json.dumps(contract, separators=(",", ":")).encode() if contract["signatures"] else None


def loads(text: str | bytes) -> dict[str, Any]:
    """Parse the contract of a file of any format.

    Args:
        text: The JSON text.

    Returns:
        An object with `signatures`.

    Raises:
        ModelError: The text is damaged, or its version is newer than this module knows.
    """
    contract = metadata.parse(METADATA_NAME, text, VERSION)
    if not isinstance(contract.get("signatures"), dict):
        raise ModelError(f"its metadata {METADATA_NAME} is damaged: it has no object `signatures`")
    return contract


def attach(model: Model, data: bytes) -> None:
    """Set the roles of a model's values from the contract in its file.

    Args:
        model: The model, changed in place.
        data: The contract, JSON.

    Raises:
        ModelError: The contract is damaged, or its version is newer than this module knows.
    """
    signatures = loads(data)["signatures"]
    with metadata.reports_damage(METADATA_NAME):
        for signature in model.signatures:
            entries = signatures.get(signature.name, {})
            for values, direction in ((signature.inputs, "inputs"), (signature.outputs, "outputs")):
                for entry in entries.get(direction, ()):
                    value, role = values.get(entry["name"]), parse_role(entry)
                    is_input = direction == "outputs" and value in signature.inputs.values()
                    if value is not None and role is not None and not is_input:
                        value.meta["role"] = role


def parse_role(entry: Mapping[str, Any]) -> Role | None:
    """Return the role in a contract's entry of one input or output.

    Args:
        entry: The entry.

    Returns:
        The role; None if the entry has no role or a role of unknown kind.

    Raises:
        ValueError: The layer is no integer, the layout has no axis T, or a size is no positive integer.
    """
    kind: Any = entry.get("role")
    if kind not in _KINDS:
        return None
    layer, layout = entry.get("layer"), entry.get("layout")
    if not (layer is None or isinstance(layer, int)):
        raise ValueError(f"the layer {layer!r} is no integer")
    if layout is not None and (not isinstance(layout, str) or "T" not in layout):
        raise ValueError(f"the layout {layout!r} has no axis T")
    sizes = {name: size for name in _SIZES if (size := entry.get(name)) is not None}
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"the {name} {size!r} is no positive integer")
    rope = entry.get("rope")
    return Role(kind, layer, layout, rope=None if rope is None else str(rope), **sizes)  # type: ignore[arg-type]
