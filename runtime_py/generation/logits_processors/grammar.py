"""The logits processor of a grammar: it forbids tokens that cannot continue a text of the grammar.

llguidance computes which tokens can. It knows the bytes of each token, so a token may end in the middle of a
character or of a terminal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache

import llguidance
import numpy as np

from o2o.errors import ModelError, UsageError
from runtime_py.generation.grammar import WHITESPACE, Grammar
from runtime_py.text.token_bytes import TokenBytes
from runtime_py.text.tokenizer import Tokenizer
from runtime_py.text.tokenizer.token_ids import TokenIds

_LONGEST_MESSAGE = 300
_MARK = "\x02"


class GrammarCompiler:
    """Compiles grammars for one tokenizer. Its methods may be called in any thread."""

    def __init__(self, tokenizer: Tokenizer, eos: Sequence[int]) -> None:
        """Read the vocabulary. This takes about 0.3 s for 128,000 tokens.

        Args:
            tokenizer: The tokenizer of the model.
            eos: The ids that end a text.

        Raises:
            UsageError: Texts of this tokenizer have no characters, or nothing ends a text.
        """
        if isinstance(tokenizer, TokenIds):
            raise UsageError("a grammar needs a tokenizer: texts are token ids here")
        if not eos:
            raise UsageError("a grammar needs an end of sequence: generation_config.json has no eos_token_id")
        try:
            vocabulary = llguidance.TokenizerWrapper(_Vocabulary(tokenizer, eos))
            self._tokenizer = llguidance.LLTokenizer(vocabulary, eos_token=list(eos))
        except Exception as error:  # the library raises classes of its own
            raise ModelError(f"the tokenizer cannot be used with a grammar: {_line(error)}") from error
        self._compile = lru_cache(maxsize=16)(self._compiled)

    def processor(self, grammar: Grammar) -> GrammarProcessor:
        """Compile a grammar. Grammars that were compiled lately are stored.

        Args:
            grammar: The grammar.

        Returns:
            The processor. It may be used for several texts, one after the other.

        Raises:
            UsageError: The grammar has an error, or uses what is not supported: `uniqueItems`, `not`,
                `contains`, `if` and others in a JSON schema.
        """
        return GrammarProcessor(self._compile(grammar).deep_copy())

    def _compiled(self, grammar: Grammar) -> llguidance.LLMatcher:
        name = {"json_schema": "JSON schema", "regex": "regular expression"}.get(grammar.kind, "grammar")
        try:
            source = _definition(grammar)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"the {name} is not supported: {_line(error)}") from error
        matcher = llguidance.LLMatcher(self._tokenizer, source, log_level=0)
        if matcher.is_error():
            raise UsageError(f"the {name} is not supported: {_line(matcher.get_error())}")
        return matcher


class GrammarProcessor:
    """Forbids the tokens after which the text cannot have the form of the grammar. See `LogitsProcessor`."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        """Start before any text.

        Args:
            matcher: Reads the tokens of the text.
        """
        self._matcher = matcher
        self._prompt: list[int] = []
        self._read: list[int] = []  # the tokens after the prompt that the matcher has read

    def __call__(self, ids: Sequence[int], logits: np.ndarray) -> np.ndarray:
        """Forbid tokens.

        Args:
            ids: The token ids so far. The first call for a text has its prompt.
            logits: [V].

        Returns:
            The logits [V], -inf for forbidden tokens.

        Raises:
            UsageError: A token of the text is not of the grammar, or the grammar is too complex.
        """
        self._follow(ids)
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise UsageError(f"the grammar cannot be followed: {_line(self._matcher.get_error())}")
        allowed = np.unpackbits(mask, count=min(len(logits), len(mask) * 8), bitorder="little")
        result = np.full_like(logits, -np.inf)
        np.copyto(result[: len(allowed)], logits[: len(allowed)], where=allowed.view(bool))
        return result

    def forced_tokens(self, ids: Sequence[int]) -> list[int]:
        """See `ForcesTokens`.

        Args:
            ids: The token ids so far. The processor was called for the prompt of this text.

        Returns:
            The next token ids that the grammar forces.
        """
        self._follow(ids)
        return list(self._matcher.compute_ff_tokens())

    def _follow(self, ids: Sequence[int]) -> None:
        """Bring the matcher to the end of a text: often by one token, or back, or to a new text."""
        length = len(self._prompt)
        if not self._prompt or list(ids[:length]) != self._prompt:
            self._prompt, length = list(ids), len(ids)
            self._read = []
            self._matcher.reset()
        new = list(ids[length:])
        shared = len(self._read)
        if new[:shared] != self._read:
            pairs = enumerate(zip([*new, None], [*self._read, -1], strict=False))
            shared = next(place for place, (token, other) in pairs if token != other)
            self._matcher.rollback(len(self._read) - shared)
        if len(new) > shared and not self._matcher.consume_tokens(new[shared:]):
            raise UsageError(f"the text has left the grammar: {_line(self._matcher.get_error())}")
        self._read = new


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, eos: Sequence[int]) -> None:
        token_bytes = TokenBytes(tokenizer)
        ids = range(tokenizer.num_ids)
        self.eos_token_id = eos[0]
        self.bos_token_id = None
        self.tokens = [token_bytes(token) for token in ids]
        self.special_token_ids = [token for token in ids if tokenizer.is_hidden(token)]
        self._encode = tokenizer.encode
        special = {*self.special_token_ids, *eos}
        self._ids = {content: token for token, content in enumerate(self.tokens) if token not in special}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: str) -> list[int]:
        """Encode a text whose form is forced. The bytes of the tokens are those of the text.

        Many tokenizers put a space before a text. It is cut off with a mark before the text.
        """
        if not isinstance(text, str):
            raise TypeError("llguidance asks whether bytes are accepted")
        content = text.encode()
        tokens, before = self._encode(_MARK + text, special=False), b""
        while tokens and not before.endswith(_MARK.encode()):
            before += self.tokens[tokens.pop(0)]
        if b"".join(self.tokens[token] for token in tokens) == content:
            return tokens
        return list(self._greedy(content))

    def _greedy(self, content: bytes) -> Iterator[int]:
        """The longest token at each place, as far as there are tokens."""
        place = 0
        while place < len(content):
            lengths = range(min(self._longest, len(content) - place), 0, -1)
            length = next((n for n in lengths if content[place : place + n] in self._ids), None)
            if length is None:
                return
            yield self._ids[content[place : place + length]]
            place += length


def _definition(grammar: Grammar) -> str:
    """The grammar as llguidance reads it. Raises ValueError if it is malformed."""
    match grammar.kind:
        case "json_schema":
            schema = json.loads(grammar.source)
            schema = {} if schema is True else schema
            return llguidance.LLMatcher.grammar_from_json_schema(
                json.dumps(schema), overrides={"whitespace_pattern": WHITESPACE, "lenient": False}
            )
        case "regex":
            return llguidance.LLMatcher.grammar_from_regex(grammar.source)
        case "gbnf":
            return llguidance.grammar_from("gbnf", grammar.source)
    return llguidance.LLMatcher.grammar_from_lark(grammar.source)


def _line(error: Exception | str) -> str:
    text = " ".join(str(error).partition("<state>")[0].split())
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}..."
