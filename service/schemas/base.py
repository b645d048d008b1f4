"""What the bodies of requests and answers are made of."""

from typing import Annotated, Generic, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints

IdentityType = Literal[
    "controller_customer_id", "email", "phone", "android_advertising_id", "android_id", "fire_advertising_id",
    "ios_advertising_id", "ios_vendor_id", "microsoft_advertising_id", "microsoft_publisher_id", "roku_publisher_id",
    "roku_advertising_id",
]  # fmt: skip
IDENTITY_TYPES = get_args(IdentityType)
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Item = TypeVar("Item")


def _encodable(value: str) -> str:
    """JSON can spell half a character (a lone surrogate), which no UTF-8 text holds."""
    if "\0" in value:
        raise ValueError("contains a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("not valid Unicode: a lone surrogate") from None
    return value


Text = Annotated[str, AfterValidator(_encodable)]


def _possible(path: str) -> str:
    if any(len(part.encode()) > 255 for part in path.split("/")):
        raise ValueError("a name in it is longer than 255 bytes")
    return path


ServerPath = Annotated[Text, StringConstraints(min_length=1, max_length=4096), AfterValidator(_possible)]


class In(BaseModel):
    """Input: unknown fields are refused, and errors never repeat what was sent."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)


class Listing(BaseModel, Generic[Item]):
    """A page."""

    items: list[Item]
    next_cursor: str | None


class Problem(BaseModel):
    """RFC 9457; `errors` names each field that is wrong and never repeats what was sent."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[dict[str, str]] | None = None
