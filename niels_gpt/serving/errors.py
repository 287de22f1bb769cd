"""Errors of the API, in OpenAI's form."""

import logging
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from niels_gpt.errors import first_line
from niels_gpt.printable import escape_line

KINDS = {401: "authentication_error", 429: "rate_limit_error"}
log = logging.getLogger("niels_gpt")


class ApiError(HTTPException):
    """An error response: its HTTP status and message, the field at fault, and a code for programs."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, **headers: str
    ) -> None:
        super().__init__(status, message, {name.replace("_", "-"): value for name, value in headers.items()})
        self.param, self.code = param, code


def describe_error(error: HTTPException) -> dict[str, Any]:
    """Return the body of an error's response."""
    kind = KINDS.get(error.status_code, "server_error" if error.status_code >= 500 else "invalid_request_error")
    place = {name: getattr(error, name, None) for name in ("param", "code")}
    return {"error": {"message": error.detail, "type": kind, **place}}


def render_error(request: Request, error: Exception) -> JSONResponse:
    """Return the response to an error. It reveals nothing about an error that is not an HTTPException."""
    if not isinstance(error, HTTPException):
        error = log_fault(error)
    if error.status_code == 404 and not isinstance(error, ApiError):
        endpoints = ", ".join(path for route in request.app.routes if "{" not in (path := route.path))
        error = ApiError(404, f"there is no {request.url.path[:100]}; the endpoints are {endpoints}")
    return JSONResponse(describe_error(error), error.status_code, error.headers)


def log_fault(error: Exception) -> ApiError:
    """Log an error that is not the client's, and return what the client is told."""
    log.error("a request failed: %s: %s", type(error).__name__, escape_line(first_line(error)))
    return ApiError(500, "the server failed; its log says why")
