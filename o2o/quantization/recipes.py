"""Quantization recipes: the schemes of a model's matrices, of its embedding table and of its LM head."""

from __future__ import annotations

from dataclasses import dataclass, replace

from o2o.errors import UsageError
from o2o.quantization.schemes import FLOAT16, INT4_BLOCK32, INT4_BLOCK128, INT8, SCHEMES, Scheme

FLOAT = "float"  # the name of no scheme: the matrix is not quantized


@dataclass(frozen=True)
class Recipe:
    """The schemes of a model's matrices. None: not quantized.

    Attributes:
        name: The name of the recipe.
        matrices: The scheme of the weights of FULLY_CONNECTED, and of wq, wk, wv, wo of ATTENTION.
        embedding: The scheme of the table of token embeddings.
        lm_head: The scheme of the weights of the last FULLY_CONNECTED, which computes the logits.
        explicit: A DEQUANTIZE before the operator restores the weights, and the operator computes in float32.
            Otherwise its kernel takes quantized weights and quantizes the activations.
        untie: A matrix that is both embedding and LM head becomes one constant for each. Otherwise it stays
            one, with the more accurate of both schemes.
    """

    name: str
    matrices: Scheme | None
    embedding: Scheme | None
    lm_head: Scheme | None
    explicit: bool = False
    untie: bool = False

    def as_json(self) -> dict[str, str]:
        """Return the recipe for JSON.

        Returns:
            Its name, and the name of the scheme of each part.
        """
        schemes = {"matrices": self.matrices, "embedding": self.embedding, "head": self.lm_head}
        return {"recipe": self.name, **{part: s.name if s else FLOAT for part, s in schemes.items()}}

    @property
    def tolerance(self) -> float:
        """The tolerance of `--check`: the largest of its schemes' tolerances."""
        used = (self.matrices, self.embedding, self.lm_head)
        return max((scheme.tolerance for scheme in used if scheme), default=0.0)


NONE = Recipe("none", None, None, None)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("dynamic_int8", INT8, INT8, INT8),
        Recipe("weight_only_int8", INT8, INT8, INT8, explicit=True),
        # Embedding and LM head need more than 4 bits: each of their rows decides about one token.
        Recipe("dynamic_int4_block32", INT4_BLOCK32, INT8, INT8),
        Recipe("dynamic_int4_block128", INT4_BLOCK128, INT8, INT8),
        # In a small model the LM head is most of the bytes that a decode step reads.
        Recipe("dynamic_int4_block32_head", INT4_BLOCK32, INT8, INT4_BLOCK32, untie=True),
        Recipe("float16", FLOAT16, FLOAT16, FLOAT16, explicit=True),
        NONE,
    )
}

# The names of ai-edge-quantizer, and of `--quantize=true`.
ALIASES = {
    "true": "dynamic_int8",
    "false": "none",
    "dynamic_wi8_afp32": "dynamic_int8",
    "dynamic_wi8c_afp32": "dynamic_int8",
    "weight_only_wi8_afp32": "weight_only_int8",
    "dynamic_wi4b32_afp32": "dynamic_int4_block32",
    "dynamic_wi4b128_afp32": "dynamic_int4_block128",
}

PARTS = (FLOAT, *SCHEMES)  # the choices for embedding and LM head


def find_recipe(name: str, embedding: str | None = None, lm_head: str | None = None) -> Recipe:
    """Return a recipe by name.

    Args:
        name: The name of a recipe, or an alias.
        embedding: The name of another scheme for the embedding table; None for the recipe's.
        lm_head: The name of another scheme for the LM head; None for the recipe's.

    Returns:
        The recipe.

    Raises:
        UsageError: A name is unknown.
    """
    recipe = RECIPES.get(ALIASES.get(name, name))
    if recipe is None:
        raise UsageError(f"unknown recipe {name!r}: choose from {', '.join((*RECIPES, *ALIASES))}")
    if embedding is not None:
        recipe = replace(recipe, embedding=_scheme(embedding))
    if lm_head is not None:
        recipe = replace(recipe, lm_head=_scheme(lm_head))
    return recipe


def _scheme(name: str) -> Scheme | None:
    if name not in PARTS:
        raise UsageError(f"unknown scheme {name!r}: choose from {', '.join(PARTS)}")
    return SCHEMES.get(name)
