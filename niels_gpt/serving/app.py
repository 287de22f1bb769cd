"""The API: OpenAI's chat completions, completions and models, the server's health, and the chat page."""

import asyncio
import hmac
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from importlib.resources import files
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from niels_gpt.generation.generate import Generator, Token
from niels_gpt.serving.errors import ApiError, describe_error, render_error
from niels_gpt.serving.requests import ApiRequest, ChatRequest, CompletionRequest, parse_request
from niels_gpt.serving.responses import Answer
from niels_gpt.serving.worker import Job, Worker

MAX_BODY = 1 << 20  # bytes
BODY_SECONDS = 10.0
LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")
# The page has everything within it; no other site may show it in a frame.
PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
PAGE_POLICY += "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


class ServedModel(NamedTuple):
    """A model under its name; `details` are shown to clients."""

    name: str
    generator: Generator
    chats: bool
    details: Mapping[str, Any]


class Api:
    """The endpoints."""

    def __init__(self, models: Sequence[ServedModel], worker: Worker, api_key: str, seconds: float) -> None:
        self._models, self._worker = {model.name: model for model in models}, worker
        self._key, self._seconds = api_key.encode(), seconds
        self._started = int(time.time())

    async def show_page(self, _: Request) -> Response:
        """Return the chat page."""
        page = files("niels_gpt.serving").joinpath("page.html").read_text("utf-8")
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-store"})

    async def show_health(self, _: Request) -> Response:
        """Return that the server is up, and how many requests wait."""
        return JSONResponse({"status": "ok", "waiting": self._worker.count_waiting()})

    async def list_models(self, request: Request) -> Response:
        """Return all models, or the one that the path names."""
        self._authorize(request)
        if name := request.path_params.get("name"):
            return JSONResponse(self._describe(self._find_model(name)))
        return JSONResponse({"object": "list", "data": [*map(self._describe, self._models.values())]})

    def _authorize(self, request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if self._key and (scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(), self._key)):
            message = "the API key is missing or wrong"
            raise ApiError(401, message, code="invalid_api_key", www_authenticate="Bearer")

    def _find_model(self, name: str) -> ServedModel:
        if model := self._models.get(name or next(iter(self._models))):
            return model
        message = f"there is no model {name[:100]!r}, only {', '.join(self._models)}"
        raise ApiError(404, message, param="model", code="model_not_found")

    def _describe(self, model: ServedModel) -> dict[str, Any]:
        cfg = model.generator.model.cfg
        return {
            "id": model.name, "object": "model", "created": self._started, "owned_by": "niels_gpt",
            "context": cfg.T, "chats": model.chats, "parameters": model.generator.model.parameter_count(),
            **model.details,
        }  # fmt: skip

    async def answer(self, kind: type[ApiRequest], request: Request) -> Response:
        """Continue texts, or answer a conversation."""
        self._authorize(request)
        asked = parse_request(kind, await read_body(request))
        model = self._find_model(asked.model)
        if kind is ChatRequest and not model.chats:
            message = f"{model.name} is only pretrained, so it cannot chat; use /v1/completions"
            raise ApiError(400, message, param="model")
        job = Job(asked, model.generator, time.monotonic() + self._seconds)
        self._worker.submit(job)
        answer, tokens = Answer(asked, model.name, model.generator), job.read()
        watch = asyncio.create_task(_end_when_client_leaves(request, job))
        try:
            async with asyncio.timeout(self._seconds):
                first = await anext(tokens)
            if asked.stream:
                sent = _stream(answer, job, first, tokens)
                return StreamingResponse(sent, 200, {"Cache-Control": "no-store"}, "text/event-stream")
            choices = defaultdict[int, list[Token]](list, {first[0]: [first[1]]})
            async for n, token in tokens:
                choices[n].append(token)
            return JSONResponse(answer.render(choices.items(), "message", job.prompt_tokens))
        except TimeoutError:
            message = f"the server was too busy to begin within {self._seconds:g} s"
            raise ApiError(503, message, code="timeout", retry_after="5") from None
        finally:
            watch.cancel()


async def read_body(request: Request) -> bytes:
    """Return the body of a request. ApiError if it is too large, too slow or not declared as JSON."""
    too_large = ApiError(413, f"the body is larger than {MAX_BODY} bytes")
    if int(request.headers.get("content-length", 0)) > MAX_BODY:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, f"the body was not complete within {BODY_SECONDS:g} s", connection="close") from None
    except ClientDisconnect:
        raise ApiError(400, "the body is not complete") from None
    # A page of another site can send anything else without asking first.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "the Content-Type must be application/json")
    return bytes(body)


async def _end_when_client_leaves(request: Request, job: Job) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.send(ApiError(499, "the client left"))


async def _stream(
    answer: Answer, job: Job, first: tuple[int, Token], rest: AsyncIterator[tuple[int, Token]]
) -> AsyncIterator[str]:
    """Yield the server-sent events of an answer."""
    used = job.prompt_tokens if job.request.stream_options.continuous_usage_stats else None
    try:
        n, token = first
        yield _format_event(answer.render([(n, [token])], "delta", used))
        async for n, token in rest:
            chunk = answer.render([(n, [token])], "delta", used)  # in any case: it counts
            if token.text or token.finish_reason or job.request.alternatives is not None:
                yield _format_event(chunk)
        if job.request.stream_options.include_usage:
            yield _format_event(answer.render([], "delta", job.prompt_tokens))
        yield "data: [DONE]\n\n"
    except ApiError as error:
        yield _format_event(describe_error(error))


def _format_event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, allow_nan=False)}\n\n"


def make_app(
    models: Sequence[ServedModel],
    worker: Worker,
    *,
    api_key: str = "",
    hosts: Sequence[str] = ("*",),
    seconds: float = 120.0,
) -> Starlette:
    """Return the application; start the worker yourself.

    `hosts` are the names that clients may use for it: a site whose name was rebound to this machine sends its own.
    `seconds` is the time for an answer, from the end of the request.
    """
    api = Api(models, worker, api_key, seconds)
    routes = [
        Route("/", api.show_page),
        Route("/health", api.show_health),
        Route("/v1/models", api.list_models),
        Route("/v1/models/{name:path}", api.list_models),
        Route("/v1/completions", partial(api.answer, CompletionRequest), methods=["POST"]),
        Route("/v1/chat/completions", partial(api.answer, ChatRequest), methods=["POST"]),
    ]
    guard = Middleware(TrustedHostMiddleware, allowed_hosts=[*hosts], www_redirect=False)
    handlers = {HTTPException: render_error, Exception: render_error}
    return Starlette(routes=routes, middleware=[guard], exception_handlers=handlers)
