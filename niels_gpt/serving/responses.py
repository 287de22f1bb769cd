"""Answers in the forms of OpenAI's API."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal
from uuid import uuid4

from niels_gpt.generation.generate import Generator, Token
from niels_gpt.serving.requests import ApiRequest, ChatRequest

LEAST_LOGPROB = -9999.0  # JSON has no -inf


class Answer:
    """The answer to a request, as one object or as a stream of them."""

    def __init__(self, request: ApiRequest, model: str, generator: Generator) -> None:
        self._request, self._model, self._generator = request, model, generator
        self._chats = isinstance(request, ChatRequest)
        self._id, self._created = f"{'chatcmpl' if self._chats else 'cmpl'}-{uuid4().hex}", int(time.time())
        self._tokens, self._characters = 0, Counter[int]()
        self._names = {id: name for name, id in generator.tokenizer.special.items()}

    def render(
        self,
        choices: Iterable[tuple[int, Sequence[Token]]],
        part: Literal["message", "delta"],
        prompt_tokens: int | None = None,
    ) -> dict[str, Any]:
        """Return an object with these tokens of numbered choices: a whole message of a chat, or a delta of it.

        With `prompt_tokens` it has the usage, in which the end of an answer is a token, too.
        """
        kind = "text_completion" if not self._chats else "chat.completion" + ".chunk" * (part == "delta")
        made: dict[str, Any] = {"id": self._id, "object": kind, "created": self._created, "model": self._model}
        made["choices"] = [self._make_choice(n, tokens, part) for n, tokens in choices]
        if prompt_tokens is not None:
            usage = {"prompt_tokens": prompt_tokens, "completion_tokens": self._tokens}
            made["usage"] = usage | {"total_tokens": prompt_tokens + self._tokens}
        return made

    def _make_choice(self, n: int, tokens: Sequence[Token], part: str) -> dict[str, Any]:
        self._tokens += len(tokens)
        text = "".join(token.text for token in tokens)
        said = {part: {"role": "assistant", "content": text}} if self._chats else {"text": text}
        logprobs = None
        if self._request.alternatives is not None:
            shown = [token for token in tokens if token.id not in self._generator.ends]
            logprobs = self._list_entries(shown) if self._chats else self._list_columns(n, shown)
        return {"index": n, **said, "logprobs": logprobs, "finish_reason": tokens[-1].finish_reason}

    def _list_entries(self, tokens: Sequence[Token]) -> dict[str, Any]:
        """Return log probabilities in the form of chats."""
        entries = [
            self._make_entry(token.id, token.logprob)
            | {"top_logprobs": [self._make_entry(id, logprob) for id, _, logprob in token.alternatives]}
            for token in tokens
        ]
        return {"content": entries, "refusal": None}

    def _make_entry(self, id: int, logprob: float) -> dict[str, Any]:
        text = self._show(id)
        content = self._generator.tokenizer.decode_bytes([id]) or text.encode()
        return {"token": text, "logprob": max(logprob, LEAST_LOGPROB), "bytes": [*content]}

    def _list_columns(self, n: int, tokens: Sequence[Token]) -> dict[str, Any]:
        """Return log probabilities in the form of completions; offsets count from the answer's beginning."""
        columns: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token in tokens:
            text = self._show(token.id)
            likely = {self._show(id): max(logprob, LEAST_LOGPROB) for id, _, logprob in token.alternatives}
            row = text, max(token.logprob, LEAST_LOGPROB), likely, self._characters[n]
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
            self._characters[n] += len(text)
        return columns

    def _show(self, id: int) -> str:
        return self._names.get(id) or self._generator.tokenizer.decode([id])
