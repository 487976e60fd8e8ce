"""Recipes by name."""

from __future__ import annotations

import re

import pytest

from o2o.errors import UsageError
from o2o.quantization.recipes import ALIASES, NONE, RECIPES, find_recipe
from o2o.quantization.schemes import INT4_BLOCK32, INT8


def test_every_alias_is_a_recipe() -> None:
    assert {find_recipe(alias).name for alias in ALIASES} <= set(RECIPES)
    assert find_recipe("true").name == "dynamic_int8"
    assert find_recipe("false") is NONE


def test_embedding_and_head_may_be_something_else() -> None:
    recipe = find_recipe("dynamic_int4_block32", embedding="float", lm_head="int4_block32")
    assert (recipe.matrices, recipe.embedding, recipe.lm_head) == (INT4_BLOCK32, None, INT4_BLOCK32)
    assert find_recipe("dynamic_int4_block32").lm_head is INT8
    schemes = {"matrices": "int4_block32", "embedding": "float", "head": "int4_block32"}
    assert recipe.as_json() == {"recipe": "dynamic_int4_block32", **schemes}


def test_what_is_unknown_is_told_with_what_there_is() -> None:
    with pytest.raises(
        UsageError, match=re.escape("unknown recipe 'int3': choose from dynamic_int8, weight_only")
    ):
        find_recipe("int3")
    with pytest.raises(
        UsageError, match="unknown scheme 'int7': choose from float, float16, int8, int4_block32"
    ):
        find_recipe("dynamic_int8", lm_head="int7")
