"""Special and added tokens of the JSON files of a tokenizer, by the rules of transformers 5.

`added_tokens_decoder` of `tokenizer_config.json` decides alone, where it exists. Otherwise the added tokens
are those of `added_tokens.json` and `tokenizer.json`, and `special_tokens_map.json` overrides
`tokenizer_config.json`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import AddedToken

from o2o.errors import ModelError
from runtime_py.text.files import Place
from runtime_py.text.tokenizer.files import (
    ADDED_TOKENS_NAME,
    FLAGS,
    read_added_tokens,
    read_special_tokens_map,
)

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

Token = str | AddedToken
"""A token as declared: a text, or a text with flags."""


@dataclass
class SpecialTokens:
    """The tokens that the files of a tokenizer declare.

    Attributes:
        named: Token by role, such as `bos_token` or `image_token`; None for an explicit null.
        extra: Special tokens without a role.
        added: Added token by id.
    """

    named: dict[str, Token | None]
    extra: list[Token]
    added: dict[int, AddedToken]

    def set_defaults(self, defaults: Mapping[str, str | None]) -> None:
        """Set the tokens of the roles that the files leave open.

        Args:
            defaults: Token by role.
        """
        named = {**defaults, **self.named}
        self.named = {role: named[role] for role in sorted(named, key=_rank)}  # new ids go by this order

    def texts(self) -> dict[str, str]:
        """Return the special tokens for chat templates.

        Returns:
            Text by role.
        """
        return {role: str(token) for role, token in self.named.items() if token is not None}

    def add_to(self, tokenizer: tokenizers.Tokenizer) -> None:
        """Make these tokens known to a tokenizer.

        Args:
            tokenizer: Changed in place.

        Raises:
            ModelError: A new token cannot have the id that the files give it.
        """
        declared = {
            token.content: number
            for number, token in self.added.items()
            if tokenizer.token_to_id(token.content) is None
        }
        tokens: list[Token] = [self.added[number] for number in sorted(self.added)]
        known = {
            token.content for token in (*tokenizer.get_added_tokens_decoder().values(), *self.added.values())
        }
        for special in (*self.named.values(), *self.extra):
            if special is not None and str(special) not in known and special not in tokens:
                tokens.append(special)
        roles = set(self.texts().values())
        tokenizer.add_tokens([_with_special_flag(token, roles) for token in tokens if str(token)])
        for text, number in declared.items():
            if (actual := tokenizer.token_to_id(text)) != number:
                raise ModelError(
                    f"the added token {text!r} has id {number}, but the next free id is {actual}: the "
                    "vocabulary belongs to another checkpoint"
                )


def read_special_tokens(
    directory: Place,
    config: Mapping[str, Any],
    in_tokenizer_json: Mapping[int, AddedToken],
    in_vocabulary: Iterable[AddedToken],
) -> SpecialTokens:
    """Read the tokens that the files of a tokenizer declare.

    Args:
        directory: The tokenizer's folder.
        config: The content of `tokenizer_config.json`.
        in_tokenizer_json: The added tokens of `tokenizer.json`, by id.
        in_vocabulary: The special tokens of `tokenizer.model`.

    Returns:
        The tokens.

    Raises:
        ModelError: A file is not JSON, or a value has the wrong type.
    """
    values = dict(config)
    if "additional_special_tokens" in values and not values.get("extra_special_tokens"):
        values["extra_special_tokens"] = values.pop("additional_special_tokens")
    by_role = _pop_roles(values)
    decoder = config.get("added_tokens_decoder")
    added: dict[int, AddedToken] = {}
    if decoder is not None:
        added = {int(number): _with_flags(token) for number, token in decoder.items()}
    else:
        _merge(values, read_special_tokens_map(directory))
        special = {str(_token(values[role])) for role in ROLES if values.get(role)}
        special |= {str(_token(token)) for token in values.get("extra_special_tokens") or ()}
        for text, number in read_added_tokens(directory).items():
            if number in added:
                both = f"{added[number].content!r} and {text!r}"
                raise ModelError(f"{directory / ADDED_TOKENS_NAME}: {both} both have id {number}")
            added[number] = AddedToken(text, normalized=text not in special, special=text in special)
        added |= in_tokenizer_json
    by_text = {token.content: token for token in added.values()}
    named: dict[str, Token | None] = {}
    for role in ROLES:
        if role in values:
            token = _token(values[role])
            named[role] = token if token is None else by_text.get(str(token), token)
    for role, value in values.items():
        if role.endswith("_token") and role not in ROLES and isinstance(value, str | dict | AddedToken):
            named[role] = _token(value)
    named |= by_role | _pop_roles(values)
    if "extra_special_tokens" in values:
        extra = values["extra_special_tokens"]
    else:
        extra = in_vocabulary or values.get("additional_special_tokens")
    return SpecialTokens(named, list(_tokens(extra or ())), added)


def _rank(role: str) -> int:
    return ROLES.index(role) if role in ROLES else len(ROLES)


def _pop_roles(values: dict[str, Any]) -> dict[str, Token | None]:
    """Remove `extra_special_tokens` that have roles, and return them."""
    if not isinstance(values.get("extra_special_tokens"), dict):
        return {}
    return {role: _token(value) for role, value in values.pop("extra_special_tokens").items()}


def _merge(values: dict[str, Any], declared: Mapping[str, Any]) -> None:
    """Override `values` by what `special_tokens_map.json` declares. Extra tokens are appended."""
    for key, value in declared.items():
        if key == "extra_special_tokens" and isinstance(value, list):
            before = list(_tokens(values.get(key) or ()))
            values[key] = before + [token for token in _tokens(value) if token not in before]
        elif isinstance(value, dict) and key != "extra_special_tokens":
            values[key] = _with_flags(value, special=True)
        else:
            values[key] = value


def _tokens(values: Iterable[Any]) -> Iterable[Token]:
    return (token for value in values if (token := _token(value)) is not None)


def _token(value: Any) -> Token | None:
    return _with_flags(value) if isinstance(value, dict) else value


def _with_flags(value: Mapping[str, Any], **flags: bool) -> AddedToken:
    return AddedToken(value["content"], **{flag: value[flag] for flag in FLAGS if flag in value} | flags)


def _with_special_flag(token: Token, roles: set[str]) -> AddedToken:
    """Set the flag `special`: a token with a role is special, and so is a text without flags."""
    if isinstance(token, str):
        return AddedToken(token, special=True)
    if token.content in roles:
        token.special = True
    return token
