"""A conversation with a chat model, in turns."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Protocol, Unpack

from o2o.errors import UsageError
from runtime_py.generation.generate import GenerationOptions, Token
from runtime_py.generation.session import BUSY, Session
from runtime_py.text.chat_template import ChatTemplate, Message
from runtime_py.text.tokenizer import Tokenizer


class Stream(Protocol):
    """Generates a continuation, as `runtime_py.package.Package.stream` does."""

    def __call__(
        self, prompt: Sequence[int], session: Session, **options: Unpack[GenerationOptions]
    ) -> Generator[Token, None, None]: ...


class Conversation:
    """The messages of a conversation, and the session of its text. Each turn computes only its new tokens.

    with package.chat() as conversation:
        for token in conversation.say("Hello"):
            ...
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        stream: Stream,
        system: str | None = None,
        **options: Unpack[GenerationOptions],
    ) -> None:
        """Start a conversation.

        Args:
            session: The session of the conversation, which `close` closes.
            tokenizer: The model's tokenizer.
            template: The checkpoint's chat template.
            stream: Generates an answer from token ids.
            system: The system message.
            options: Options of `stream`, for every answer.
        """
        self.session = session
        self.messages: list[Message] = []
        self._tokenizer = tokenizer
        self._template = template
        self._stream = stream
        self._options = options
        self._answering = threading.Lock()
        self._system: list[Message] = [{"role": "system", "content": system}] if system else []
        self.reset()

    def reset(self) -> None:
        """Remove all messages except the system message."""
        self.messages = list(self._system)

    def close(self) -> None:
        """Close the session. The messages stay."""
        self.session.close()

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def say(self, message: str | Message) -> Generator[Token, None, None]:
        """Generate the answer to a message, then add both to the conversation.

        If generation is interrupted, the tokens so far are the answer. If it stops before the first token,
        nothing is added. `messages` may be changed between two answers. `reset` during an answer forgets it.

        Args:
            message: The text of a user message, or a message of any role, such as a tool's answer.

        Yields:
            The tokens of the answer.

        Raises:
            UsageError: The conversation does not fit into the context, or was closed, or the template
                refuses it; or another answer is being generated.
        """
        new: Message = {"role": "user", "content": message} if isinstance(message, str) else message
        if not self._answering.acquire(blocking=False):
            raise UsageError(BUSY)
        messages = self.messages
        answer: str | None = None
        try:
            ids = self._tokenizer.encode(self._template.render([*messages, new]), special=False)
            with closing(self._stream(ids, self.session, **self._options)) as tokens:
                for token in tokens:
                    answer = (answer or "") + token.text
                    yield token
        finally:
            if answer is not None:
                messages += [new, {"role": "assistant", "content": answer}]
            self._answering.release()
