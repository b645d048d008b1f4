"""The tables of the subject index. They hold positions and keyed hashes, never a text."""

from datetime import datetime
from uuid import UUID, uuid4

from sqlalchemy import BigInteger, ForeignKey, Identity, Index, UniqueConstraint, func
from sqlalchemy.dialects.postgresql import JSONB, TSVECTOR
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base


class Corpus(Base):
    """Training data of a model, in the customer's own place; indexed up to `cursor`."""

    __tablename__ = "corpora"
    __table_args__ = (UniqueConstraint("model_id", "name"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    model_id: Mapped[UUID] = mapped_column(ForeignKey("models.id"))
    name: Mapped[str]
    path: Mapped[str]
    form: Mapped[str] = mapped_column(comment="jsonl, csv, parquet, lines, folder")
    text_column: Mapped[str]
    columns: Mapped[dict[str, str]] = mapped_column(comment="column -> identity type")
    phone_region: Mapped[str | None]
    state: Mapped[str] = mapped_column(server_default="indexing")
    reason: Mapped[str | None]
    cursor: Mapped[dict[str, int] | None] = mapped_column(JSONB, comment="place of the last record that is indexed")
    records: Mapped[int] = mapped_column(BigInteger, server_default="0")
    done: Mapped[int] = mapped_column(BigInteger, server_default="0", comment="of size")
    size: Mapped[int] = mapped_column(BigInteger, comment="bytes; rows of a Parquet file")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    indexed_at: Mapped[datetime | None]


class CorpusRecord(Base):
    """A record's position and the keyed hashes that find it. Nothing here can be read as text."""

    __tablename__ = "corpus_records"
    __table_args__ = (
        UniqueConstraint("corpus_id", "file", "start"),
        Index("ix_corpus_records_identifiers", "identifiers", postgresql_using="gin"),
        Index("ix_corpus_records_bands", "bands", postgresql_using="gin"),
        Index("ix_corpus_records_words", "words", postgresql_using="gin"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    corpus_id: Mapped[UUID] = mapped_column(ForeignKey("corpora.id", ondelete="CASCADE"))
    file: Mapped[int] = mapped_column(BigInteger, comment="of a folder: its number in the order of names")
    start: Mapped[int] = mapped_column(BigInteger)
    length: Mapped[int] = mapped_column(BigInteger)
    text_hash: Mapped[int] = mapped_column(BigInteger)
    identifiers: Mapped[list[int]] = mapped_column(comment="identity type and value, in three hashed formats")
    bands: Mapped[list[int]] = mapped_column(comment="of the text's MinHash")
    words: Mapped[str] = mapped_column(TSVECTOR, comment="hashed words with their positions")
