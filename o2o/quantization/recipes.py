"""Named recipes: what becomes of a model's matrices, of its embedding table, and of its head."""

from __future__ import annotations

from dataclasses import dataclass, replace

from o2o.errors import UsageError
from o2o.quantization.schemes import FLOAT16, INT4_BLOCK32, INT4_BLOCK128, INT8, SCHEMES, Scheme

FLOAT = "float"  # what a recipe calls a table that stays as it is


@dataclass(frozen=True)
class Recipe:
    """matrices: the weights of FULLY_CONNECTED, and wq, wk, wv, wo of ATTENTION. embedding: the table that
    token ids are looked up in. head: the weights of the last FULLY_CONNECTED, which makes the logits. None is
    float, as it was. explicit: weights are turned back by a DEQUANTIZE in front of the operator, so that it
    computes in float; else its kernel takes them as they are and quantises what they are multiplied with.
    apart: what is embedding and head becomes one constant for each; else one, as good as the better of both.
    """

    name: str
    matrices: Scheme | None
    embedding: Scheme | None
    head: Scheme | None
    explicit: bool = False
    apart: bool = False

    def told(self) -> dict[str, str]:
        """The recipe for JSON."""
        parts = {"matrices": self.matrices, "embedding": self.embedding, "head": self.head}
        return {"recipe": self.name, **{part: s.name if s else FLOAT for part, s in parts.items()}}

    @property
    def tolerance(self) -> float:
        """How far results may be off, see `Scheme`."""
        used = (self.matrices, self.embedding, self.head)
        return max((scheme.tolerance for scheme in used if scheme), default=0.0)


NONE = Recipe("none", None, None, None)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("dynamic_int8", INT8, INT8, INT8),
        Recipe("weight_only_int8", INT8, INT8, INT8, explicit=True),
        # Four bits are few for a table of which each row is one word, and for the last word.
        Recipe("dynamic_int4_block32", INT4_BLOCK32, INT8, INT8),
        Recipe("dynamic_int4_block128", INT4_BLOCK128, INT8, INT8),
        # Of a small model the head is what a step reads most of.
        Recipe("dynamic_int4_block32_head", INT4_BLOCK32, INT8, INT4_BLOCK32, apart=True),
        Recipe("float16", FLOAT16, FLOAT16, FLOAT16, explicit=True),
        NONE,
    )
}

# ai-edge-quantizer's names, and what --quantize=true stands for.
ALIASES = {
    "true": "dynamic_int8",
    "false": "none",
    "dynamic_wi8_afp32": "dynamic_int8",
    "dynamic_wi8c_afp32": "dynamic_int8",
    "weight_only_wi8_afp32": "weight_only_int8",
    "dynamic_wi4b32_afp32": "dynamic_int4_block32",
    "dynamic_wi4b128_afp32": "dynamic_int4_block128",
}

PARTS = (FLOAT, *SCHEMES)  # what may be asked for an embedding or a head


def find(name: str, embedding: str | None = None, head: str | None = None) -> Recipe:
    """The recipe of that name or alias, with another scheme for embedding or head. Raises UsageError."""
    recipe = RECIPES.get(ALIASES.get(name, name))
    if recipe is None:
        raise UsageError(f"unknown recipe {name!r}: there are {', '.join((*RECIPES, *ALIASES))}")
    if embedding is not None:
        recipe = replace(recipe, embedding=_scheme(embedding))
    if head is not None:
        recipe = replace(recipe, head=_scheme(head))
    return recipe


def _scheme(name: str) -> Scheme | None:
    if name not in PARTS:
        raise UsageError(f"unknown scheme {name!r}: there are {', '.join(PARTS)}")
    return SCHEMES.get(name)
