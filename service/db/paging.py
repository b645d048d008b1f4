"""Keyset pages: stable under inserts, index-driven, with an opaque cursor."""

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session

from service.domain.errors import Invalid

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    """Some rows and where the next ones begin."""

    items: list[Row]
    next_cursor: str | None


def page(
    session: Session,
    query: Select[Any],
    key: InstrumentedAttribute[Any],
    kind: Callable[[str], Any],
    cursor: str | None,
    limit: int,
    *,
    descending: bool = False,
) -> Page[Row]:
    """One page of `query` ordered by the unique column `key`.

    Raises:
        Invalid: The cursor is not one that a page gave.
    """
    if cursor is not None:
        try:
            after = kind(base64.urlsafe_b64decode(cursor.encode()).decode())
        except (ValueError, binascii.Error) as error:
            raise Invalid("Not a cursor that a page gave.", field="cursor") from error
        query = query.where(key < after if descending else key > after)
    rows: list[Row] = list(session.scalars(query.order_by(key.desc() if descending else key).limit(limit + 1)))
    more = len(rows) > limit
    rows = rows[:limit]
    token = base64.urlsafe_b64encode(str(getattr(rows[-1], key.key)).encode()).decode() if more else None
    return Page(rows, token)
