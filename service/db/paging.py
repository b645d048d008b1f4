"""Keyset pages: stable under inserts, read from an index, with an opaque cursor."""

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session

from service.domain.errors import Invalid

Row = TypeVar("Row")
Key = TypeVar("Key", int, str)


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    """A page of rows, and the cursor of the next page."""

    items: list[Row]
    next_cursor: str | None


def page(
    session: Session,
    query: Select[Row],
    key: InstrumentedAttribute[Key],
    parse_key: Callable[[str], Key],
    cursor: str | None,
    limit: int,
    *,
    descending: bool = False,
) -> Page[Row]:
    """One page of `query` ordered by the unique column `key`.

    Raises:
        Invalid: The cursor does not come from a page.
    """
    if cursor is not None:
        try:
            after = parse_key(base64.urlsafe_b64decode(cursor.encode()).decode())
        except (ValueError, binascii.Error) as error:
            raise Invalid("The cursor does not come from a page.", field="cursor") from error
        query = query.where(key < after if descending else key > after)
    rows = list(session.scalars(query.order_by(key.desc() if descending else key).limit(limit + 1)))
    has_more = len(rows) > limit
    rows = rows[:limit]
    next_cursor = base64.urlsafe_b64encode(str(getattr(rows[-1], key.key)).encode()).decode() if has_more else None
    return Page(rows, next_cursor)
