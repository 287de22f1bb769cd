"""Requests of OpenAI's API, checked. Fields that are not known here are ignored, as clients send many."""

import secrets
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from niels_gpt.data.chat_template import encode_prompt
from niels_gpt.data.readers.records import Message
from niels_gpt.generation.sampling import Sampling
from niels_gpt.serving.errors import ApiError
from niels_gpt.tokenizer import END_OF_TEXT, Tokenizer
from niels_gpt.untrusted import explain_first_error

MAX_TOKENS = 1 << 14  # of all answers to a request; a token with its alternatives takes 3 KB
MAX_ANSWERS = 16
SAMPLING = Sampling.model_fields.keys() - {"alternatives", "seed"}  # fields of that name
# Settings that change nothing at these values; any other would be ignored silently.
NEUTRAL: dict[str, Any] = {
    "presence_penalty": 0, "frequency_penalty": 0, "logit_bias": {}, "best_of": 1, "echo": False, "suffix": "",
    "tools": [], "functions": [], "response_format": {"type": "text"}, "modalities": ["text"], "audio": None,
    "prediction": None, "reasoning_effort": "none", "web_search_options": None,
}  # fmt: skip


def _join_parts(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
    texts = [text for part in parts if isinstance(text := part.get("text"), str)]
    if len(texts) < len(content):
        raise ValueError("only parts of type text are supported")
    return "\n".join(texts)


def _refuse_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("a text cannot have NUL")
    return text


def _make_list(given: Any) -> Any:
    return [given] if isinstance(given, str) else given


Text = Annotated[str, AfterValidator(_refuse_nul)]


class _Fields(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _StreamOptions(_Fields):
    include_usage: bool = False
    continuous_usage_stats: bool = False  # in each chunk, as in vLLM


class _ChatMessage(_Fields):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Text, BeforeValidator(_join_parts)]

    def read(self) -> Message:
        """Return it as the chat template takes it."""
        return Message("system" if self.role == "developer" else self.role, self.content)


class _Shared(_Fields):
    """The fields that both kinds have. Without `model`, the first one answers."""

    model: str = ""
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()
    n: int = Field(1, ge=1)
    seed: int = Field(default_factory=lambda: secrets.randbits(32), ge=-(1 << 63), lt=1 << 64)
    sampling: Sampling  # from the fields that have its names


class CompletionRequest(_Shared):
    """A text to continue, or several."""

    prompt: Annotated[list[Text], Field(min_length=1), BeforeValidator(_make_list)]
    alternatives: int | None = Field(None, alias="logprobs", ge=0, le=20)  # None: no log probabilities

    def encode(self, tokenizer: Tokenizer) -> list[list[int]]:
        """Return the ids of each prompt."""
        return [[tokenizer.special[END_OF_TEXT], *tokenizer.encode(text)] for text in self.prompt]


class ChatRequest(_Shared):
    """A conversation to answer."""

    messages: list[_ChatMessage] = Field(min_length=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)

    @property
    def alternatives(self) -> int | None:
        """Likely tokens to report beside each chosen one, None for no log probabilities."""
        return self.top_logprobs if self.logprobs else None

    def encode(self, tokenizer: Tokenizer) -> list[list[int]]:
        """Return the ids of the prompt, the only one."""
        return [encode_prompt([message.read() for message in self.messages], tokenizer)]


ApiRequest = CompletionRequest | ChatRequest


def choose_samplings(request: ApiRequest) -> list[Sampling]:
    """Return how to draw each of the `n` answers to a prompt."""
    seeds = [(request.seed + n) % (1 << 64) for n in range(request.n)]
    each = request.sampling.model_copy(update={"alternatives": request.alternatives or 0})
    return [each.model_copy(update={"seed": seed}) for seed in seeds]


def parse_request(kind: type[ApiRequest], body: bytes) -> ApiRequest:
    """Return the request in a body. ApiError (400) names the first fault."""
    try:
        given = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    if not isinstance(given, dict):
        raise ApiError(400, "the body must be a JSON object")
    given = {name: value for name, value in given.items() if value is not None}
    for name, neutral in NEUTRAL.items():
        if given.get(name, neutral) != neutral:
            raise ApiError(400, f"{name} is not supported", param=name)
    if "max_completion_tokens" in given:
        given["max_tokens"] = given["max_completion_tokens"]
    sampling = {name: given[name] for name in SAMPLING & given.keys()}
    try:
        asked = kind.model_validate(given | {"sampling": sampling})
    except ValidationError as error:
        where, message = explain_first_error(error)
        where = where.removeprefix("sampling.")
        raise ApiError(400, f"{where}: {message}", param=where) from None
    answers = asked.n * (len(asked.prompt) if isinstance(asked, CompletionRequest) else 1)
    if answers > MAX_ANSWERS or answers * asked.sampling.max_tokens > MAX_TOKENS:
        limit = f"at most {MAX_ANSWERS} answers (n for each prompt), of at most {MAX_TOKENS} tokens together"
        raise ApiError(400, limit, param="n" if answers > MAX_ANSWERS else "max_tokens")
    return asked
