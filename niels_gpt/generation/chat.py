"""Complete text or chat with a trained model."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from niels_gpt.data.chat_template import encode_prompt
from niels_gpt.data.readers.records import Message
from niels_gpt.generation.generate import generate
from niels_gpt.model.gpt import GPT
from niels_gpt.tokenizer import END_OF_TEXT, END_OF_TURN, Tokenizer
from niels_gpt.weights.trained_model import open_model


class ChatSession:
    """A model with its tokenizer and conversation, of which it sees the last T tokens. `chats` after SFT."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, *, chats: bool) -> None:
        self.model, self.tokenizer, self.chats = model, tokenizer, chats
        self.conversation: list[Message] = []

    def complete(self, text: str, **sampling: Any) -> Iterator[str]:
        """Yield the continuation of `text` piece by piece; `sampling` as in `generate`."""
        end = self.tokenizer.special[END_OF_TEXT]
        yield from self._stream_text([end, *self.tokenizer.encode(text)], [end], sampling)

    def reply(self, question: str, **sampling: Any) -> Iterator[str]:
        """Yield the assistant's answer piece by piece; `sampling` as in `generate`.

        The question and the yielded part of the answer join the conversation with the first piece.
        """
        message, start, answer = Message("user", question), len(self.conversation), ""
        prompt = encode_prompt([*self.conversation, message], self.tokenizer)
        for piece in self._stream_text(prompt, [self.tokenizer.special[END_OF_TURN]], sampling):
            answer += piece
            self.conversation[start:] = message, Message("assistant", answer)
            yield piece

    def _stream_text(self, prompt: Sequence[int], stop: Sequence[int], sampling: dict[str, Any]) -> Iterator[str]:
        """Decode tokens as they come; hold back an incomplete character."""
        ids: list[int] = []
        shown = ""
        for id in generate(self.model, prompt, stop=stop, **sampling):
            ids.append(id)
            text = self.tokenizer.decode(ids)
            if text != shown and not text.endswith("\ufffd"):
                yield text[len(shown) :]
                shown = text
        yield self.tokenizer.decode(ids)[len(shown) :]


def load_session(
    path: Path, *, step: int | None = None, average: int | None = None, ema: bool = False
) -> ChatSession:
    """Load the weights that `read_weights` chooses, with the run's tokenizer. Errors as of `open_model`."""
    trained = open_model(path, step=step, average=average, ema=ema)
    return ChatSession(trained.model, trained.tokenizer, chats=trained.chats)
