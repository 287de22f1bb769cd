"""Errors of the API, in OpenAI's form."""

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse


class ApiError(HTTPException):
    """A request that gets no answer: the HTTP status and the reason, the field at fault, a code for programs."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, **headers: str
    ) -> None:
        super().__init__(status, message, {name.replace("_", "-"): value for name, value in headers.items()})
        self.param, self.code = param, code


def describe_error(error: HTTPException) -> dict[str, Any]:
    """Return the body of an error's response."""
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(error.status_code, "server_error" if error.status_code >= 500 else "invalid_request_error")
    param, code = getattr(error, "param", None), getattr(error, "code", None)
    return {"error": {"message": error.detail, "type": kind, "param": param, "code": code}}


def render_error(_: Request, error: Exception) -> JSONResponse:
    """Return the response to an error of ours, or of the routes: no such page, or method."""
    assert isinstance(error, HTTPException)
    return JSONResponse(describe_error(error), error.status_code, error.headers)
