"""Answers in the forms of OpenAI's API."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from niels_gpt.generation.generate import Generator, Token
from niels_gpt.serving.requests import ApiRequest, ChatRequest

LEAST_LOGPROB = -9999.0  # JSON has no -inf


@dataclass
class Answer:
    """The answer to a request: `begin` has the fields of each of its objects."""

    request: ApiRequest
    model: str
    generator: Generator

    def __post_init__(self) -> None:
        self.chats = isinstance(self.request, ChatRequest)
        self.id = f"{'chatcmpl' if self.chats else 'cmpl'}-{uuid4().hex}"
        self.created, self._characters, self.tokens = int(time.time()), Counter[int](), 0
        self._names = {id: name for name, id in self.generator.tokenizer.special.items()}

    def make_whole(self, choices: Sequence[Sequence[Token]], prompt_tokens: int) -> dict[str, Any]:
        """Return the response that is not streamed."""
        made = [self._make_choice(n, tokens, "message") for n, tokens in enumerate(choices)]
        return self._wrap(made, "chat.completion") | {"usage": self.count_usage(prompt_tokens)}

    def make_chunk(self, n: int, token: Token) -> dict[str, Any]:
        """Return the next object of a stream, with the next token of choice `n`."""
        return self._wrap([self._make_choice(n, [token], "delta")], "chat.completion.chunk")

    def make_usage(self, prompt_tokens: int) -> dict[str, Any]:
        """Return the last object of a stream, if the client asked for it."""
        return self._wrap([], "chat.completion.chunk") | {"usage": self.count_usage(prompt_tokens)}

    def count_usage(self, prompt_tokens: int) -> dict[str, int]:
        """Return the numbers of tokens; the end of a turn is one."""
        total = prompt_tokens + self.tokens
        return {"prompt_tokens": prompt_tokens, "completion_tokens": self.tokens, "total_tokens": total}

    def _wrap(self, choices: list[dict[str, Any]], object: str) -> dict[str, Any]:
        object = object if self.chats else "text_completion"
        return {"id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices}

    def _make_choice(self, n: int, tokens: Sequence[Token], part: str) -> dict[str, Any]:
        """Return a choice; a chat's text is in a message, or in the delta of one."""
        text = "".join(token.text for token in tokens)
        self.tokens += len(tokens)
        logprobs = None
        if self.request.alternatives is not None:
            shown = [token for token in tokens if token.id not in self.generator.ends]
            logprobs = self._list_entries(shown) if self.chats else self._list_columns(n, shown)
        said = {part: {"role": "assistant", "content": text}} if self.chats else {"text": text}
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
        whole = "\ufffd" not in text  # else a part of a character
        return {
            "token": text, "logprob": max(logprob, LEAST_LOGPROB), "bytes": [*text.encode()] if whole else None
        }  # fmt: skip

    def _list_columns(self, n: int, tokens: Sequence[Token]) -> dict[str, Any]:
        """Return log probabilities in the form of completions; offsets count from the answer's beginning."""
        offsets = []
        for token in tokens:
            offsets.append(self._characters[n])
            self._characters[n] += len(self._show(token.id))
        return {
            "tokens": [self._show(token.id) for token in tokens],
            "token_logprobs": [max(token.logprob, LEAST_LOGPROB) for token in tokens],
            "top_logprobs": [
                {self._show(id): max(logprob, LEAST_LOGPROB) for id, _, logprob in token.alternatives}
                for token in tokens
            ],
            "text_offset": offsets,
        }

    def _show(self, id: int) -> str:
        return self._names.get(id) or self.generator.tokenizer.decode([id])
