"""Query parameters of lists."""

from typing import Annotated
from uuid import UUID

from fastapi import Query
from sqlalchemy.orm import Session

from service.db import models
from service.domain.errors import Invalid

Cursor = Annotated[str | None, Query(max_length=200, description="`next_cursor` of the previous page")]
Limit = Annotated[int, Query(ge=1, le=200)]
ModelFilter = Annotated[str | None, Query(max_length=63, description="only of this model")]


def filtered_model(session: Session, name: str | None) -> UUID | None:
    """The id of the model that a filter names; None without a filter.

    Raises:
        Invalid: There is no such model. An empty list would hide a name that is misspelled.
    """
    model = models.by_name(session, name) if name is not None else None
    if name is not None and model is None:
        raise Invalid("There is no model of that name.", field="model", code="unknown_model")
    return model.id if model else None
