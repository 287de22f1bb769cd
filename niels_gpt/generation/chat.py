"""Complete text or chat with a trained model."""

from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any

from niels_gpt.data.chat_template import encode_prompt, make_turn
from niels_gpt.data.readers.records import Message
from niels_gpt.errors import CheckpointError
from niels_gpt.generation.generate import Generator, Token
from niels_gpt.generation.sampling import Sampling, make_sampling
from niels_gpt.model.gpt import GPT
from niels_gpt.tokenizer import ASSISTANT, END_OF_TEXT, Tokenizer
from niels_gpt.weights.trained_model import open_model


class ChatSession:
    """A model with its tokenizer, a system message ("" for none) and a conversation. `chats` after SFT.

    `sampling` of the methods is settings of Sampling, such as temperature=0; ConfigError if one cannot be used.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, *, chats: bool, system: str = "") -> None:
        self.model, self.tokenizer, self.chats, self.system = model, tokenizer, chats, system
        self.generator = Generator(model, tokenizer)
        self.conversation: list[Message] = []
        self._said: dict[int, list[int]] = {}  # the model's own ids of messages, by their place

    def chat(self, system: str = "") -> "ChatSession":
        """Return a new conversation with the same model; talk in one at a time."""
        session = copy(self)
        session.system, session.conversation, session._said = system, [], {}
        return session

    def complete(self, text: str, **sampling: Any) -> Iterator[str]:
        """Yield the continuation of `text` piece by piece."""
        return (token.text for token in self.stream_completion(text, make_sampling(**sampling)) if token.text)

    def reply(self, question: str, **sampling: Any) -> Iterator[str]:
        """Yield the assistant's answer piece by piece.

        The question and the yielded part of the answer join the conversation with the first piece. CheckpointError
        if the model is only pretrained.
        """
        return (token.text for token in self.stream_reply(question, make_sampling(**sampling)) if token.text)

    def stream_completion(self, text: str, sampling: Sampling) -> Iterator[Token]:
        """Yield the tokens of `complete`."""
        self.generator.warned = False
        prompt = [self.tokenizer.special[END_OF_TEXT], *self.tokenizer.encode(text)]
        return self.generator.stream(prompt, sampling)

    def stream_reply(self, question: str, sampling: Sampling) -> Iterator[Token]:
        """Yield the tokens of `reply`."""
        if not self.chats:
            raise CheckpointError("the model is only pretrained, so it cannot reply", "use complete(text)")
        message, start, answer = Message("user", question), len(self.conversation), ""
        prompt, said = self._encode([*self.conversation, message]), list[int]()
        self.generator.warned &= bool(self.conversation)
        for token in self.generator.stream(prompt, sampling):
            answer += token.text
            if token.id not in self.generator.ends:
                said.append(token.id)
            if token.text or token.finish_reason:
                self.conversation[start:] = message, Message("assistant", answer)
                self._said[start + 1] = said
            yield token

    def _encode(self, messages: list[Message]) -> list[int]:
        """Return a prompt. An answer keeps the ids that the model chose, which need not be computed again."""
        system = [Message("system", self.system)] if self.system else []
        ids = encode_prompt(system, self.tokenizer)[:-1]
        for n, message in enumerate(messages):
            words = self._said.get(n, [])
            if not words or self.tokenizer.decode(words) != message.content:
                words = self.tokenizer.encode(message.content)
            ids += make_turn(message, words, self.tokenizer).ids
        return [*ids, self.tokenizer.special[ASSISTANT]]


def load_session(
    path: str | Path, *, step: int | None = None, average: int | None = None, ema: bool = False
) -> ChatSession:
    """Load what `open_model` opens, such as a run folder; nothing is written there. Errors as of `open_model`."""
    trained = open_model(Path(path), step=step, average=average, ema=ema)
    return ChatSession(trained.model, trained.tokenizer, chats=trained.chats)


load = load_session  # as niels_gpt.load
