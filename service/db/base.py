"""The base class of all tables: names of constraints, and the column types of Python's types."""

from datetime import datetime

from sqlalchemy import ARRAY, BigInteger, DateTime, LargeBinary, MetaData, Text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase

from service.domain.json_types import JsonObject

NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Base class of all tables."""

    metadata = MetaData(naming_convention=NAMES)
    type_annotation_map = {  # noqa: RUF012  # SQLAlchemy defines this attribute
        datetime: DateTime(timezone=True),
        JsonObject: JSONB,
        dict[str, object]: JSONB,
        list[str]: ARRAY(Text),
        list[int]: ARRAY(BigInteger),
        dict[str, str]: JSONB,
        str: Text,
        bytes: LargeBinary,
    }
