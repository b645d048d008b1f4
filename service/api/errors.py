"""Every error as `application/problem+json` (RFC 9457), naming the field and never repeating what was sent."""

import re
from collections.abc import Sequence
from typing import Any

import psycopg
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy import exc
from sqlalchemy.exc import DataError, OperationalError
from starlette.exceptions import HTTPException

from service.domain.errors import ServiceError
from service.observability.logging import get_logger

logger = get_logger(__name__)
# The last one: no connection of the pool became free.
DATABASE_AWAY = (OperationalError, psycopg.OperationalError, exc.TimeoutError)
MEDIA_TYPE = "application/problem+json"
FIELD_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_-]{0,39}$")


def problem(
    status: int,
    code: str,
    title: str,
    detail: str,
    errors: list[dict[str, str]] | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """A problem document."""
    body: dict[str, Any] = {
        "type": f"urn:unlearnd:problem:{code}", "title": title, "status": status, "detail": detail, "code": code,
    }  # fmt: skip
    if errors:
        body["errors"] = errors
    return JSONResponse(body, status, headers=headers, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Register the handlers."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    for kind in DATABASE_AWAY:
        app.add_exception_handler(kind, _database_away)
    app.add_exception_handler(DataError, _unstorable)
    app.add_exception_handler(psycopg.DataError, _unstorable)
    app.add_exception_handler(Exception, _unexpected)


def _service_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServiceError)
    errors = [{"field": error.field, "message": error.detail}] if error.field else None
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else error.headers
    return problem(error.status, error.code, error.title, error.detail, errors, headers)


def _validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    errors = [{"field": field_name(e["loc"]), "message": _message(e)} for e in error.errors()]
    fields = ", ".join(dict.fromkeys(e["field"] for e in errors))
    return problem(422, "invalid", "The request is not valid", f"Not valid: {fields}.", errors)


def field_name(location: Sequence[int | str]) -> str:
    """`records.0.text` of ("body", "records", 0, "text"); a name that may be someone's data is left out."""
    parts = [str(p) for p in location if p not in ("body", "query", "path", "header")]
    named = [p if p.isdigit() or FIELD_NAME.match(p) else "(unknown field)" for p in parts]
    return ".".join(named) or "body"


def _message(error: dict[str, Any]) -> str:
    """Pydantic's message; those of JSON and of unknown fields are said without an excerpt."""
    kind = error["type"]
    if kind == "json_invalid":
        return "The body is not valid JSON."
    if kind == "extra_forbidden":
        return "There is no such field."
    return str(error["msg"])


def _http_exception(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:
        errors = [{"field": "body", "message": "The body is not JSON in UTF-8."}]
        return problem(400, "malformed", "The request cannot be read", "The body is not JSON in UTF-8.", errors)
    title = str(error.detail)
    code = title.lower().replace(" ", "_")
    return problem(error.status_code, code, title, title, headers=dict(error.headers or {}))


def _database_away(_: Request, error: Exception) -> JSONResponse:
    logger.error("the database does not answer", error=type(error).__name__)
    detail = "The database does not answer. It may have taken this: repeat it with the same Idempotency-Key."
    return problem(503, "unavailable", "Temporarily unavailable", detail, headers={"Retry-After": "5"})


def _unstorable(_: Request, __: Exception) -> JSONResponse:
    detail = "A value cannot be stored: a NUL character, or a number out of range."
    return problem(422, "invalid", "The request is not valid", detail)


def _unexpected(_: Request, error: Exception) -> JSONResponse:
    # The type alone: a message may quote what was sent. Uvicorn logs the frames of what it re-raises.
    logger.error("unexpected", error=type(error).__name__)
    return problem(500, "internal", "Internal error", "Something went wrong here; nothing is known to be lost.")
