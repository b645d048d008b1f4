"""Corpora and the subject index over their records."""

import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, BigInteger, ColumnElement, cast, delete, func, literal, select, text, update
from sqlalchemy.dialects.postgresql import TSQUERY
from sqlalchemy.orm import Session

from service.db.corpus_tables import Corpus, CorpusRecord
from service.db.paging import Page, page
from service.db.tables import Model

BIGINTS = ARRAY(BigInteger)
MAX_MATCHES = 10_000  # records that one look-up gives
MAX_OTHERS = 500  # of other people's, that may be copies
MAX_NAMED = 500  # that a name alone finds: who has to look at them can look at no more


def by_id(session: Session, corpus_id: UUID) -> Corpus | None:
    """One corpus."""
    return session.get(Corpus, corpus_id)


def by_name(session: Session, model: Model, name: str) -> Corpus | None:
    """A model's corpus of that name."""
    return session.scalar(select(Corpus).where(Corpus.model_id == model.id, Corpus.name == name))


def listing(session: Session, model: Model, cursor: str | None, limit: int) -> Page[Corpus]:
    """A model's corpora by name."""
    return page(session, select(Corpus).where(Corpus.model_id == model.id), Corpus.name, str, cursor, limit)


def of_model(session: Session, model_id: UUID) -> list[Corpus]:
    """All corpora of a model, by name."""
    return list(session.scalars(select(Corpus).where(Corpus.model_id == model_id).order_by(Corpus.name)))


def unfinished(session: Session) -> list[UUID]:
    """Corpora that are being indexed, or should be."""
    return list(session.scalars(select(Corpus.id).where(Corpus.state == "indexing")))


def advance(session: Session, corpus: Corpus, cursor: dict[str, Any] | None, **values: Any) -> bool:
    """Move a corpus on from the cursor that was read; false if somebody else has done it, who then goes on alone."""
    same = Corpus.cursor.is_(None) if corpus.cursor is None else Corpus.cursor == corpus.cursor
    moved = update(Corpus).where(Corpus.id == corpus.id, Corpus.state == "indexing", same)
    return session.execute(moved.values(cursor=cursor, **values).returning(Corpus.id)).first() is not None


ADD = text("""
INSERT INTO corpus_records (corpus_id, file, start, length, text_hash, identifiers, bands, words)
SELECT corpus_id, file, start, length, text_hash, identifiers, bands, lexemes::tsvector
FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r (corpus_id uuid, file bigint, start bigint, length bigint,
    text_hash bigint, identifiers bigint[], bands bigint[], lexemes text)
""")


def add_records(session: Session, rows: Sequence[dict[str, Any]]) -> None:
    """Index records, in one statement; `lexemes` is a tsvector's text.

    Not with executemany: the pipeline that psycopg sends it in ends with a Flush after its Sync, which switches
    PostgreSQL's timer for idle transactions off. A process that is frozen then would hold the corpus' row for ever.
    """
    session.execute(ADD, {"rows": json.dumps(rows, default=str)})


def remove(session: Session, corpus: Corpus) -> None:
    """Forget a corpus and its index."""
    session.execute(delete(Corpus).where(Corpus.id == corpus.id))


def _of(model_id: UUID, condition: ColumnElement[bool]) -> Any:
    query = select(CorpusRecord).join(Corpus, Corpus.id == CorpusRecord.corpus_id)
    return query.where(Corpus.model_id == model_id, condition).order_by(CorpusRecord.id).limit(MAX_MATCHES)


def by_identifiers(session: Session, model_id: UUID, hashes: Sequence[int]) -> list[CorpusRecord]:
    """Records with one of these identifiers."""
    overlap = CorpusRecord.identifiers.op("&&")(cast(list(hashes), BIGINTS))
    return list(session.scalars(_of(model_id, overlap)))


def by_phrases(session: Session, model_id: UUID, phrases: Sequence[str]) -> list[CorpusRecord]:
    """The first records with one of these names in their text; each is a tsquery."""
    found = CorpusRecord.words.op("@@")(cast(literal(" | ".join(f"({p})" for p in phrases)), TSQUERY))
    return list(session.scalars(_of(model_id, found).limit(MAX_NAMED)))


def near_copies(session: Session, model_id: UUID, record: CorpusRecord) -> list[CorpusRecord]:
    """Records that may be copies of one, itself among them: they share a band, and have no identifier but its own."""
    return list(session.scalars(_of(model_id, _alike(record) & _of_its_own(record))))


def near_copies_of_others(session: Session, model_id: UUID, record: CorpusRecord) -> list[CorpusRecord]:
    """The first of those that may be copies and have another identifier: a form letter may have any number."""
    return list(session.scalars(_of(model_id, _alike(record) & ~_of_its_own(record)).limit(MAX_OTHERS)))


def _alike(record: CorpusRecord) -> ColumnElement[bool]:
    return CorpusRecord.bands.op("&&")(cast(list(record.bands), BIGINTS))


def _of_its_own(record: CorpusRecord) -> ColumnElement[bool]:
    return CorpusRecord.identifiers.op("<@")(cast(list(record.identifiers), BIGINTS))


def records(session: Session, ids: Sequence[int]) -> list[CorpusRecord]:
    """These records, in order."""
    listed = CorpusRecord.id == func.any(cast(list(ids), BIGINTS))
    return list(session.scalars(select(CorpusRecord).where(listed).order_by(CorpusRecord.id)))
