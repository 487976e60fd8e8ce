"""Grammars: every text that ends has the form; what is not supported is refused in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from o2o.errors import UsageError
from runtime_py.generation.grammar import Grammar
from runtime_py.generation.logits_processors.grammar import GrammarCompiler
from runtime_py.text.detokenizer import Detokenizer
from runtime_py.text.token_bytes import TokenBytes
from runtime_py.text.tokenizer import Tokenizer, load_tokenizer
from runtime_py.text.tokenizer.token_ids import TokenIds
from tests.conftest import ROOT
from tests.runtime_py.tokenizers_on_disk import write_characters

DEMO = ROOT / "tinyllama" / "demo" / "checkpoint"
PROMPT = [5, 7]


@pytest.fixture(scope="module", params=["characters", "demo"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    if request.param == "demo":
        return load_tokenizer(DEMO)
    folder = tmp_path_factory.mktemp("characters")
    write_characters(folder)
    return load_tokenizer(folder)


def eos_of(tokenizer: Tokenizer) -> int:
    return 2 if tokenizer.num_ids > 1000 else 1


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, [eos_of(tokenizer)])


def drawn(tokenizer: Tokenizer, compiler: GrammarCompiler, grammar: Grammar, seed: int) -> str | None:
    """A text of random tokens that the grammar allows; None if it does not end soon."""
    processor = compiler.processor(grammar)
    random = np.random.default_rng(seed)
    ending = [eos_of(tokenizer), *(id_of(tokenizer, letter) for letter in '}]"')]
    ids = [*PROMPT]
    detokenizer = Detokenizer(tokenizer, continues=True)
    text, eos = "", eos_of(tokenizer)
    for _ in range(400):
        logits = random.standard_normal(tokenizer.num_ids + 3).astype(np.float32)
        logits[ending] += 4  # texts end
        processed = processor(ids, logits)
        token = int(processed.argmax())
        assert np.isfinite(processed[token])
        if token == eos:
            return text + detokenizer.flush()
        ids.append(token)
        text += detokenizer.push(token)
    return None


def id_of(tokenizer: Tokenizer, letter: str) -> int:
    """The id of a letter without a space before it."""
    token_bytes = TokenBytes(tokenizer)
    return max(token for token in range(tokenizer.num_ids) if token_bytes(token) == letter.encode())


def schemas() -> st.SearchStrategy[Any]:
    """JSON schemas of the supported keywords, each of which some value matches."""
    text = st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), max_size=6)
    scalars = st.one_of(
        st.just({"type": "null"}),
        st.just({"type": "boolean"}),
        st.builds(
            lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size},
            st.integers(-1000, 1000),
            st.integers(0, 5000),
        ),
        st.builds(
            lambda low, size: {"type": "number", "minimum": low, "exclusiveMaximum": low + size},
            st.integers(-50, 50),
            st.integers(1, 9),
        ),
        st.builds(
            lambda low, size: {"type": "string", "minLength": low, "maxLength": low + size},
            st.integers(0, 4),
            st.integers(0, 9),
        ),
        st.sampled_from(["[a-c]{2,5}", "^x+y?$", "[0-9]{4}-[0-9]{2}"]).map(
            lambda pattern: {"type": "string", "pattern": pattern}
        ),
        st.lists(st.one_of(text, st.integers(-99, 99), st.none(), st.booleans()), min_size=1, max_size=4).map(
            lambda values: {"enum": values}
        ),
        text.map(lambda value: {"const": value}),
    )

    def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.one_of(
            st.builds(
                lambda items, low, size: {
                    "type": "array",
                    "items": items,
                    "minItems": low,
                    "maxItems": low + size,
                },
                inner,
                st.integers(0, 2),
                st.integers(0, 3),
            ),
            st.builds(
                lambda first, second: {"type": "array", "prefixItems": [first, second], "items": False},
                inner,
                inner,
            ),
            st.dictionaries(text, inner, max_size=4).map(_object),
            st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options}),
        )

    return st.recursive(scalars, nested, max_leaves=6)


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    required = [name for index, name in enumerate(properties) if index % 2 == 0]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=schemas(), seed=st.integers(0, 99))
def test_every_text_that_ends_matches_its_schema(
    tokenizer: Tokenizer, compiler: GrammarCompiler, schema: Any, seed: int
) -> None:
    text = drawn(tokenizer, compiler, Grammar.json_schema(schema), seed)
    assume(text is not None)
    assert text is not None
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (Grammar.regex(" (ab|cd){3}"), " (ab|cd){3}"),
        (Grammar.regex("[0-9]{3}-[0-9]{4}"), "[0-9]{3}-[0-9]{4}"),
        (Grammar.lark('start: "yes" | "no" " "+ "way"'), "yes|no +way"),
        (Grammar.lark('root ::= "a"{5,5}'), "aaaaa"),
        (Grammar.json_object(), r"\{[\s\S]*\}"),
    ],
)
def test_texts_of_other_grammars(
    tokenizer: Tokenizer, compiler: GrammarCompiler, grammar: Grammar, pattern: str
) -> None:
    texts = [drawn(tokenizer, compiler, grammar, seed) for seed in range(8)]
    assert any(texts)
    for text in texts:
        assert text is None or re.fullmatch(pattern, text)


def test_a_processor_follows_a_text_back_and_to_another_text(
    tokenizer: Tokenizer, compiler: GrammarCompiler
) -> None:
    processor = compiler.processor(Grammar.regex("(abc|abd|x)y"))
    logits = np.zeros(tokenizer.num_ids, np.float32)

    def allowed(ids: Sequence[int]) -> set[bytes]:
        return {
            processor_bytes
            for token in np.flatnonzero(np.isfinite(processor(ids, logits)))
            if (processor_bytes := tokenizer.decode([int(token)]).encode())
        }

    a, b, c, x, y = (id_of(tokenizer, letter) for letter in "abcxy")
    start = allowed(PROMPT)
    assert {b"a", b"x"} <= start
    assert b"y" not in start
    assert allowed([*PROMPT, a, b, c]) == {b"y"}
    assert b"d" in allowed([*PROMPT, a, b]), "one token back"
    assert allowed([*PROMPT, x]) == {b"y"}, "another branch"
    assert allowed(PROMPT) == start
    assert allowed([9, 9, 9]) == start, "another prompt"
    assert allowed([9, 9, 9, x, y]) == set(), "only the end of sequence, which has no text"
    with pytest.raises(UsageError, match="the text has left the grammar"):
        allowed([9, 9, 9, y])


def test_the_next_key_is_forced(tokenizer: Tokenizer, compiler: GrammarCompiler) -> None:
    schema = {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]}
    processor = compiler.processor(Grammar.json_schema(schema | {"additionalProperties": False}))
    processor(PROMPT, np.zeros(tokenizer.num_ids, np.float32))
    token_bytes = TokenBytes(tokenizer)

    def forced(text: str) -> str:
        ids = [*PROMPT, *(id_of(tokenizer, letter) for letter in text)]
        return b"".join(map(token_bytes, processor.forced_tokens(ids))).decode()

    assert forced("") == "{"
    assert forced('{"') == 'number"'
    assert forced('{"num') == 'ber"'
    assert forced('{"number":') == ""
    assert forced("{") == ""  # spaces are allowed


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"uniqueItems": True}, "uniqueItems"),
        ({"not": {}}, "not"),
        ({"contains": {}}, "contains"),
        ({"if": {}}, "if"),
        ({"type": "hiccup"}, "hiccup"),
        ({"type": 123}, "type must be"),
        ({"$ref": "#/nope"}, "/nope"),
    ],
)
def test_what_a_schema_cannot_have(compiler: GrammarCompiler, schema: Any, message: str) -> None:
    with pytest.raises(UsageError, match=f"the JSON schema is not supported: .*{message}"):
        compiler.processor(Grammar.json_schema(schema))


@pytest.mark.parametrize(
    ("grammar", "name"),
    [
        (Grammar.regex("a("), "regular expression"),
        (Grammar.regex("(?=a)b"), "regular expression"),
        (Grammar.lark("start: foo"), "grammar"),
        (Grammar.lark("root ::= ("), "grammar"),
    ],
)
def test_malformed_grammars(compiler: GrammarCompiler, grammar: Grammar, name: str) -> None:
    with pytest.raises(UsageError, match=f"the {name} is not supported") as refused:
        compiler.processor(grammar)
    assert "\n" not in str(refused.value)


def test_what_a_grammar_needs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a grammar needs a tokenizer"):
        GrammarCompiler(TokenIds(), [1])
    with pytest.raises(UsageError, match="no eos_token_id"):
        GrammarCompiler(load_tokenizer(DEMO), [])
