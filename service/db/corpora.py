"""Queries on corpora and on the subject index over their records."""

import json
from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import ARRAY, BigInteger, ColumnElement, Select, cast, delete, func, literal, select, text, update
from sqlalchemy.dialects.postgresql import TSQUERY
from sqlalchemy.orm import Session

from service.db.corpus_tables import Corpus, CorpusRecord
from service.db.paging import Page, page
from service.db.tables import Model

BIGINTS = ARRAY(BigInteger)
MAX_MATCHES = 10_000  # records that one look-up returns
MAX_OTHERS = 500  # possible copies that belong to other people
MAX_NAMED = 500  # records that only a name matches: a person has to look at each of them


def by_id(session: Session, corpus_id: UUID) -> Corpus | None:
    """The corpus with this id."""
    return session.get(Corpus, corpus_id)


def by_name(session: Session, model: Model, name: str) -> Corpus | None:
    """A model's corpus with this name."""
    return session.scalar(select(Corpus).where(Corpus.model_id == model.id, Corpus.name == name))


def listing(session: Session, model: Model, cursor: str | None, limit: int) -> Page[Corpus]:
    """A page of a model's corpora, by name."""
    return page(session, select(Corpus).where(Corpus.model_id == model.id), Corpus.name, str, cursor, limit)


def of_model(session: Session, model_id: UUID) -> list[Corpus]:
    """All corpora of a model, by name."""
    return list(session.scalars(select(Corpus).where(Corpus.model_id == model_id).order_by(Corpus.name)))


def unfinished(session: Session) -> list[UUID]:
    """Corpora that are not indexed to their end."""
    return list(session.scalars(select(Corpus.id).where(Corpus.state == "indexing")))


def advance(session: Session, corpus: Corpus, cursor: dict[str, int] | None, **values: object) -> bool:
    """Move the cursor of a corpus on from where it was read; false if another worker moved it: that one goes on."""
    unmoved = Corpus.cursor.is_(None) if corpus.cursor is None else Corpus.cursor == corpus.cursor
    guarded = update(Corpus).where(Corpus.id == corpus.id, Corpus.state == "indexing", unmoved)
    return session.execute(guarded.values(cursor=cursor, **values).returning(Corpus.id)).first() is not None


ADD = text("""
INSERT INTO corpus_records (corpus_id, file, start, length, text_hash, identifiers, bands, words)
SELECT corpus_id, file, start, length, text_hash, identifiers, bands, lexemes::tsvector
FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r (corpus_id uuid, file bigint, start bigint, length bigint,
    text_hash bigint, identifiers bigint[], bands bigint[], lexemes text)
""")


def add_records(session: Session, rows: Sequence[dict[str, object]]) -> None:
    """Index records in one statement; `lexemes` is the text of a tsvector.

    This is not executemany: psycopg sends executemany in a pipeline that ends with a Flush after its Sync, and that
    switches off PostgreSQL's timer for idle transactions. A process frozen then would hold the corpus' row for ever.
    """
    session.execute(ADD, {"rows": json.dumps(rows, default=str)})


def remove(session: Session, corpus: Corpus) -> None:
    """Delete a corpus and its index."""
    session.execute(delete(Corpus).where(Corpus.id == corpus.id))


def _records_where(model_id: UUID, condition: ColumnElement[bool]) -> Select[CorpusRecord]:
    """The first indexed records of a model that meet a condition."""
    query = select(CorpusRecord).join(Corpus, Corpus.id == CorpusRecord.corpus_id)
    return query.where(Corpus.model_id == model_id, condition).order_by(CorpusRecord.id).limit(MAX_MATCHES)


def by_identifiers(session: Session, model_id: UUID, hashes: Sequence[int]) -> list[CorpusRecord]:
    """Records with at least one of these identifiers."""
    overlap = CorpusRecord.identifiers.bool_op("&&")(cast(list(hashes), BIGINTS))
    return list(session.scalars(_records_where(model_id, overlap)))


def by_phrases(session: Session, model_id: UUID, phrases: Sequence[str]) -> list[CorpusRecord]:
    """The first records whose text has at least one of these names; each phrase is a tsquery."""
    has_phrase = CorpusRecord.words.bool_op("@@")(cast(literal(" | ".join(f"({p})" for p in phrases)), TSQUERY))
    return list(session.scalars(_records_where(model_id, has_phrase).limit(MAX_NAMED)))


def near_copies(session: Session, model_id: UUID, record: CorpusRecord) -> list[CorpusRecord]:
    """Possible copies of a record, itself included: records that share a band and have no other identifiers."""
    return list(session.scalars(_records_where(model_id, _shares_band(record) & _has_no_other_identifier(record))))


def near_copies_of_others(session: Session, model_id: UUID, record: CorpusRecord) -> list[CorpusRecord]:
    """The first possible copies with another identifier; limited, because a form letter may have any number of them."""
    others = _records_where(model_id, _shares_band(record) & ~_has_no_other_identifier(record))
    return list(session.scalars(others.limit(MAX_OTHERS)))


def _shares_band(record: CorpusRecord) -> ColumnElement[bool]:
    """Whether a record has a MinHash band in common with this one."""
    return CorpusRecord.bands.bool_op("&&")(cast(list(record.bands), BIGINTS))


def _has_no_other_identifier(record: CorpusRecord) -> ColumnElement[bool]:
    """Whether all identifiers of a record are also in this one."""
    return CorpusRecord.identifiers.bool_op("<@")(cast(list(record.identifiers), BIGINTS))


def records(session: Session, ids: Sequence[int]) -> list[CorpusRecord]:
    """The records with these ids, in order."""
    listed = CorpusRecord.id == func.any(cast(list(ids), BIGINTS))
    return list(session.scalars(select(CorpusRecord).where(listed).order_by(CorpusRecord.id)))
