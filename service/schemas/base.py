"""Types that the bodies of requests and answers share."""

from typing import Annotated, Generic, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, HttpUrl, StringConstraints

from service.domain.addresses import check_callback_port

IdentityType = Literal[
    "controller_customer_id",
    "email",
    "phone",
    "android_advertising_id",
    "android_id",
    "fire_advertising_id",
    "ios_advertising_id",
    "ios_vendor_id",
    "microsoft_advertising_id",
    "microsoft_publisher_id",
    "roku_publisher_id",
    "roku_advertising_id",
]
IDENTITY_TYPES = get_args(IdentityType)
MAX_NAME_BYTES = 255  # of one component of a path, on Linux file systems
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Item = TypeVar("Item")


class _FailFast(FailFast):
    """Pydantic's FailFast with a hash, which Python 3.11 asks for where a list may be None."""

    __hash__ = object.__hash__


# A list ends at its first item that is not valid: an error takes a kilobyte, and a list may have thousands of items.
ShortList = Annotated[list[Item], _FailFast(), Field(max_length=50)]
LongList = Annotated[list[Item], _FailFast(), Field(max_length=10_000)]


def _check_encodable(value: str) -> str:
    """Refuse text that UTF-8 or PostgreSQL cannot hold. JSON can contain a lone surrogate, which UTF-8 cannot."""
    if "\0" in value:
        raise ValueError("contains a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("not valid Unicode: a lone surrogate") from None
    return value


Text = Annotated[str, AfterValidator(_check_encodable)]


def _check_path(path: str) -> str:
    """Refuse a path that no file can have."""
    if any(len(name.encode()) > MAX_NAME_BYTES for name in path.split("/")):
        raise ValueError("a name in it is longer than 255 bytes")
    return path


ServerPath = Annotated[Text, StringConstraints(min_length=1, max_length=4096), AfterValidator(_check_path)]


def _check_callback_url(url: HttpUrl) -> HttpUrl:
    """Refuse a URL that would never be called."""
    check_callback_port(str(url))
    return url


CallbackUrl = Annotated[HttpUrl, AfterValidator(_check_callback_url)]


class Input(BaseModel):
    """Base of request bodies. Unknown fields are refused, and errors never repeat submitted values."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)


class Listing(BaseModel, Generic[Item]):
    """A page of a list."""

    items: list[Item]
    next_cursor: str | None


class Problem(BaseModel):
    """A problem document (RFC 9457). `errors` names each field that is wrong and never repeats submitted values."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[dict[str, str]] | None = None
