"""JSON bodies: their media type, the number of their values, their validation, and what their errors say.

A validator works on the bytes. Python's objects for a body would take up to fifty times its bytes, and each value that
is wrong would take a kilobyte more.
"""

from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from service.api.errors import MAX_ERRORS
from service.api.forms import form_at
from service.domain.errors import WrongMediaType

Body = TypeVar("Body", bound=BaseModel)
SMALL_BYTES = 65_536  # up to here a body is parsed at once: a thread would take longer to start
OTHER_FORM = ("missing", "extra_forbidden", "model_type", "model_attributes_type", "list_type", "dict_type")


def check_media_type(headers: Headers) -> None:
    """Refuse a body that does not say that it is JSON.

    Raises:
        WrongMediaType: It says something else, or nothing.
    """
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = media_type == "application/json" or (
        media_type.startswith("application/") and media_type.endswith("+json")
    )
    has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    if has_body and not is_json:
        raise WrongMediaType("application/json")


async def parse(kind: type[BaseModel], raw: bytes, max_values: int, threads: CapacityLimiter) -> BaseModel:
    """The value of a body of at most so many values. A large one is parsed in one of these threads.

    Raises:
        RequestValidationError: It is not valid.
        HTTPException: It is not in UTF-8.
    """
    if len(raw) <= SMALL_BYTES:
        return validate(kind, raw, max_values)
    return await to_thread.run_sync(validate, kind, raw, max_values, limiter=threads)


def validate(kind: type[Body], raw: bytes, max_values: int) -> Body:
    """The value of a body of at most so many values.

    Raises:
        RequestValidationError: It is not valid.
        HTTPException: It is not in UTF-8.
    """
    if not raw:
        raise RequestValidationError([error_details("missing", "A body is needed.", form_at(kind, ()))])
    if has_more_values(raw, max_values):
        raise RequestValidationError([error_details("too_long", f"The body has more than {max_values} values.")])
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise invalid_body(error, kind, raw) from None


def has_more_values(raw: bytes, most: int) -> bool:
    """Whether JSON has more than `most` values. It is counted before anything is made of them.

    Strings are left out by what surrounds them: first escaped backslashes go, then escaped quotes, and the quotes that
    are left begin and end strings. Outside of strings, each value but the first follows a comma or a bracket.
    """
    if len(raw) <= most:
        return False
    quotes = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    if quotes.count(b'"') > 2 * most:
        return True
    outside = b"".join(quotes.split(b'"')[::2])
    return outside.count(b",") + outside.count(b"[") + outside.count(b"{") >= most


def invalid_body(error: ValidationError, kind: type[BaseModel], raw: bytes) -> Exception:
    """What to raise for a body that is not valid.

    The first error in each object or list that has another form than it should says which form that is.
    """
    errors: list[dict[str, object]] = []
    shown: set[tuple[int | str, ...]] = set()
    details = error.errors(include_url=False, include_input=False)
    if details[0]["type"] == "json_invalid":
        try:
            raw.decode()
        except UnicodeDecodeError:
            return HTTPException(400)
    for index, entry in enumerate(details):
        location = entry["loc"][:-1] if entry["type"] in ("missing", "extra_forbidden") else entry["loc"]
        form = None
        if index < MAX_ERRORS and entry["type"] in OTHER_FORM and location not in shown:
            form = form_at(kind, location)
            shown.add(location)
        errors.append({**entry, "loc": ("body", *entry["loc"]), "form": form})
    return RequestValidationError(errors)


def error_details(kind: str, message: str, form: str | None = None) -> dict[str, object]:
    """An error of the whole body, as pydantic describes errors."""
    return {"type": kind, "loc": ("body",), "msg": message, "form": form}
