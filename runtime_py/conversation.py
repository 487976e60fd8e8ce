"""A conversation with a model that was trained for it."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Unpack

from runtime_py.generation.generate import Options, Token
from runtime_py.generation.session import Session
from runtime_py.text.chat_template import ChatTemplate, Message

if TYPE_CHECKING:
    from runtime_py.package import Package


class Conversation:
    """What was said, in turns. Each turn computes only what is new in it
    (`runtime_py.generation.session`).
    """

    def __init__(self, package: Package, system: str | None = None, **options: Unpack[Options]) -> None:
        """system: what the model is told before all. options: those of `Package.stream`, for every turn.

        Raises ModelError for a package without a chat template.
        """
        self._package = package
        self._template = ChatTemplate(package.directory)
        self._options = options
        self._system: list[Message] = [{"role": "system", "content": system}] if system else []
        self.messages: list[Message] = []
        self.reset()

    @property
    def session(self) -> Session:
        """That of the package."""
        return self._package.session

    def reset(self) -> None:
        """Forget all but the system's message."""
        self.messages = list(self._system)

    def say(self, text: str) -> Generator[Token, None, None]:
        """The model's answer, token by token.

        Closed, or interrupted, before its end, what has been said until then is what was said. When the
        conversation does not fit any more (UsageError), `text` counts as not said.
        """
        self.messages.append({"role": "user", "content": text})
        answer: str | None = None
        try:
            ids = self._package.tokenizer.encode(self._template.render(self.messages), special=False)
            for token in self._package.stream(ids, **self._options):
                answer = (answer or "") + token.text
                yield token
        finally:
            if answer is None:
                self.messages.pop()
            else:
                self.messages.append({"role": "assistant", "content": answer})
