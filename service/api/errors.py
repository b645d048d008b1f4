"""Every error as `application/problem+json` (RFC 9457). It names the field and never repeats submitted values."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psycopg
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException

from service.db.session import DATABASE_AWAY
from service.domain.errors import ServiceError, StorageAway
from service.evidence.log_memory import LogDamaged
from service.observability.logging import get_logger

logger = get_logger(__name__)
MEDIA_TYPE = "application/problem+json"
MAX_ERRORS = 20  # that an answer lists
JSON_PLACE = re.compile(r"line (\d+) column (\d+)$")
FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,39}")


def problem(
    status: int,
    code: str,
    title: str,
    detail: str,
    errors: list[dict[str, str]] | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """A problem document."""
    body: dict[str, object] = {
        "type": f"urn:unlearnd:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
    }
    if errors:
        body["errors"] = errors
    return JSONResponse(body, status, headers=headers, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Register the exception handlers."""
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)


def to_answer(request: Request, error: Exception) -> JSONResponse:
    """The answer to a request that raised this error."""
    handler = next(HANDLERS[kind] for kind in type(error).__mro__ if kind in HANDLERS)
    return handler(request, error)


def _service_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServiceError)
    errors = [{"field": error.field, "message": error.detail}] if error.field else None
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else error.headers
    return problem(error.status, error.code, error.title, error.detail, errors, headers)


def _validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    errors = listed_errors(error)
    fields = ", ".join(dict.fromkeys(entry["field"] for entry in errors))
    return problem(422, "invalid", "The request is not valid", f"Not valid: {fields}.", errors)


def listed_errors(error: RequestValidationError) -> list[dict[str, str]]:
    """The field and the message of each error, of the first `MAX_ERRORS` alone."""
    errors: Sequence[Mapping[str, Any]] = error.errors()
    entries = [{"field": field_name(details["loc"]), "message": _message(details)} for details in errors[:MAX_ERRORS]]
    if len(errors) > MAX_ERRORS:
        entries.append({"field": "body", "message": f"And {len(errors) - MAX_ERRORS} more errors."})
    return entries


def field_name(location: Sequence[int | str]) -> str:
    """`records.0.text` for ("body", "records", 0, "text"). A name that may be personal data is left out."""
    names = [str(name) for name in location if name not in ("body", "query", "path", "header")]
    safe_names = [name if name.isdigit() or FIELD_NAME.fullmatch(name) else "(unknown field)" for name in names]
    return ".".join(safe_names) or "body"


def _message(details: Mapping[str, Any]) -> str:
    """Pydantic's message, and which form is expected. Where pydantic's message quotes the input it is our own."""
    if details["type"] == "json_invalid":
        place = JSON_PLACE.search(str(details.get("ctx", {}).get("error")))
        return f"The body is not valid JSON{f': line {place[1]}, column {place[2]}' if place else ''}."
    message = (
        "There is no such field."
        if details["type"] == "extra_forbidden"
        else str(details["msg"]).removeprefix("Value error, ")
    )
    form = details.get("form")
    return f"{message.removesuffix('.')}. Expected: {form}" if form else message


def _http_exception(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:
        errors = [{"field": "body", "message": "The body is not JSON in UTF-8."}]
        return problem(400, "malformed", "The request cannot be read", "The body is not JSON in UTF-8.", errors)
    title = str(error.detail)
    code = title.lower().replace(" ", "_")
    return problem(error.status_code, code, title, title, headers=dict(error.headers or {}))


def _database_unavailable(_: Request, error: Exception) -> JSONResponse:
    logger.error("the database does not answer", error=type(error).__name__)
    detail = "The database does not answer. The request may be stored: repeat it with the same Idempotency-Key."
    return problem(503, "unavailable", "Temporarily unavailable", detail, headers={"Retry-After": "5"})


def _log_damaged(_: Request, error: Exception) -> JSONResponse:
    logger.error("the log's tiles cannot be read", error=type(error).__name__)
    detail = "The log cannot be read now. A control worker may be converting it; otherwise unlearnd doctor says more."
    return problem(503, "unavailable", "Temporarily unavailable", detail, headers={"Retry-After": "30"})


def _storage_away(_: Request, error: Exception) -> JSONResponse:
    logger.error("the object storage does not serve", error=type(error.__cause__ or error).__name__)
    detail = "The object storage does not answer. Try again."
    return problem(503, "unavailable", "Temporarily unavailable", detail, headers={"Retry-After": "5"})


def _unstorable_value(_: Request, __: Exception) -> JSONResponse:
    detail = "A value cannot be stored: a NUL character, or a number out of range."
    return problem(422, "invalid", "The request is not valid", detail)


def _unexpected_error(_: Request, error: Exception) -> JSONResponse:
    # The log has the type alone, because a message may quote submitted text. Uvicorn logs the frames.
    logger.error("unexpected", error=type(error).__name__)
    return problem(500, "internal", "Internal error", "An unexpected error occurred. No data is known to be lost.")


HANDLERS: dict[type[Exception], Callable[[Request, Exception], JSONResponse]] = {
    ServiceError: _service_error,
    RequestValidationError: _validation_error,
    HTTPException: _http_exception,
    **dict.fromkeys(DATABASE_AWAY, _database_unavailable),
    LogDamaged: _log_damaged,
    StorageAway: _storage_away,
    DataError: _unstorable_value,
    psycopg.DataError: _unstorable_value,
    Exception: _unexpected_error,
}
