"""Answers in the forms of OpenAI's API."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate
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
            logprobs = self._list_logprobs(n, shown)
        return {"index": n, **said, "logprobs": logprobs, "finish_reason": tokens[-1].finish_reason}

    def _list_logprobs(self, n: int, tokens: Sequence[Token]) -> dict[str, Any]:
        """Return log probabilities in the form of the endpoint; offsets count from the answer's beginning."""
        entries = [self._make_entry(token.id, token.logprob) for token in tokens]
        likely = [[self._make_entry(id, logprob) for id, _, logprob in token.alternatives] for token in tokens]
        if self._chats:
            content = [entry | {"top_logprobs": top} for entry, top in zip(entries, likely, strict=True)]
            return {"content": content, "refusal": None}
        texts = [entry["token"] for entry in entries]
        *offsets, self._characters[n] = accumulate(map(len, texts), initial=self._characters[n])
        return {
            "tokens": texts,
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": [{other["token"]: other["logprob"] for other in top} for top in likely],
            "text_offset": offsets,
        }

    def _make_entry(self, id: int, logprob: float) -> dict[str, Any]:
        tokenizer = self._generator.tokenizer
        text = self._names.get(id) or tokenizer.decode([id])
        content = tokenizer.decode_bytes([id]) or text.encode()
        return {"token": text, "logprob": max(logprob, LEAST_LOGPROB), "bytes": [*content]}
