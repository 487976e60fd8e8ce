"""Errors of the API, in OpenAI's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException

from o2o.errors import ModelError, UsageError
from runtime_py.engines.step_lock import EngineClosed
from runtime_py.generation.session_pool import TooManySessions

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    501: "not_supported_error",
    503: "unavailable_error",
}
"""`type` of an error by status. All others are `invalid_request_error`."""


class ApiError(Exception):
    """An error that the client sees."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        kind: str | None = None,
        **details: Any,
    ) -> None:
        """Describe an error.

        Args:
            status: The HTTP status.
            message: What is wrong, and what to do.
            param: The field of the request.
            code: OpenAI's name of the error.
            headers: Further headers of the response.
            kind: `type` of the error; None for the type of the status.
            details: Further fields of the error.
        """
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers, self.details = dict(headers or {}), details
        self.kind = kind or TYPES.get(status, "invalid_request_error")

    @property
    def body(self) -> dict[str, Any]:
        """The response as JSON."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
                **self.details,
            }
        }


def api_error(error: Exception, names: Mapping[str, str] | None = None) -> ApiError:
    """Translate an exception.

    Args:
        error: An exception of an endpoint.
        names: The names of models by the paths of their folders, which no client sees.

    Returns:
        The error that the client sees. It does not show internals.
    """
    match error:
        case ApiError():
            return error
        case HTTPException():  # of Starlette's routes
            return ApiError(error.status_code, error.detail, headers=error.headers)
        case TooManySessions():
            return ApiError(429, "all slots are in use: try again", headers={"Retry-After": "1"})
        case EngineClosed():
            return ApiError(503, "the model was unloaded: try again", headers={"Retry-After": "1"})
        case UsageError():
            return ApiError(400, _without_paths(error, names or {}))
        case ModelError():
            return ApiError(500, _without_paths(error, names or {}))
    return ApiError(500, "internal error: the log of the server has the request id and the exception")


def _without_paths(error: Exception, names: Mapping[str, str]) -> str:
    message = str(error)
    for path, name in names.items():
        message = message.replace(path, name)
    return message
