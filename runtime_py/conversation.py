"""A conversation with a chat model, in turns."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Protocol, Unpack

from runtime_py.generation.generate import GenerationOptions, Token
from runtime_py.generation.session import Session
from runtime_py.text.chat_template import ChatTemplate, Message
from runtime_py.text.tokenizer import Tokenizer


class Stream(Protocol):
    """Generates a continuation, as `runtime_py.package.Package.stream` does."""

    def __call__(self, prompt: Sequence[int], **options: Unpack[GenerationOptions]) -> Iterator[Token]: ...


class Conversation:
    """The messages of a conversation. Each turn computes only its new tokens."""

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
            session: The session that `stream` uses.
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
        self._system: list[Message] = [{"role": "system", "content": system}] if system else []
        self.reset()

    def reset(self) -> None:
        """Remove all messages except the system message."""
        self.messages = list(self._system)

    def say(self, message: str | Message) -> Generator[Token, None, None]:
        """Add a message and generate the answer.

        If generation is interrupted, the tokens so far stay in the conversation. If generation stops before
        the first token, the message is removed. `messages` may be changed between two answers.

        Args:
            message: The text of a user message, or a message of any role, such as a tool's answer.

        Yields:
            The tokens of the answer.

        Raises:
            UsageError: The conversation does not fit into the context, or the template refuses it.
        """
        self.messages.append({"role": "user", "content": message} if isinstance(message, str) else message)
        answer: str | None = None
        try:
            ids = self._tokenizer.encode(self._template.render(self.messages), special=False)
            for token in self._stream(ids, **self._options):
                answer = (answer or "") + token.text
                yield token
        finally:
            if answer is None:
                self.messages.pop()
            else:
                self.messages.append({"role": "assistant", "content": answer})
