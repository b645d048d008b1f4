"""index: read a corpus once and keep, by keyed hashes, where whose records are.

Some hundred records a transaction, which moves the corpus' cursor with them: killed anywhere, it goes on from there,
and of two workers at one corpus, one takes no row and leaves.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy.exc import IntegrityError

from service.bootstrap import Services
from service.db import corpora, log_entries, models
from service.db.corpus_tables import Corpus
from service.domain.errors import Conflict, Invalid, NotFound
from service.observability.logging import get_logger
from service.subjects import near_copies
from service.subjects.identifiers import Hasher
from service.subjects.readers import CorpusReader, Place, Row, UnreadableCorpus, detect_form
from service.subjects.search import corpus_reader

logger = get_logger(__name__)
AT_ONCE = 500  # records, or
LARGEST_CHUNK = 8 << 20  # characters
ONE = threading.BoundedSemaphore(1)  # in a process: indexing keeps no publication waiting


def add_corpus(services: Services, model_name: str, **fields: Any) -> Corpus:
    """Register a corpus of a model, to be indexed.

    Args:
        services: The wired parts.
        model_name: The model that was trained on it.
        **fields: name, path, form (None: by the path), text_column, columns (column -> identity type), phone_region.

    Raises:
        NotFound: No such model.
        Invalid: Names the field: the path is not there, or holds no record with text.
        Conflict: The name is taken.
    """
    path = Path(fields.pop("path"))
    if not path.is_absolute() or not path.exists():
        raise Invalid("There is no such file or folder on the server.", field="path")
    form = fields.pop("form") or detect_form(path)
    source = CorpusReader(path.resolve(), form, fields["text_column"])
    try:
        size, first = source.size(), next(source.rows(), None)
    except (UnreadableCorpus, OSError) as error:
        message = str(error) if isinstance(error, UnreadableCorpus) else "It cannot be read."
        raise Invalid(message, field="path") from error
    if first is None:
        raise Invalid("It holds no text.", field="path")
    if fields["columns"] and not set(fields["columns"]) <= source.columns():
        raise Invalid("The corpus has no such column.", field="columns")
    try:
        with services.db.transaction() as session:
            model = models.by_name(session, model_name)
            if model is None:
                raise NotFound("There is no model of that name.")
            corpus = Corpus(model_id=model.id, path=str(source.path), form=form, size=size, **fields)
            session.add(corpus)
            session.flush()
            log_entries.append(session, "corpus.added", model=model_name, corpus=corpus.name)
    except IntegrityError as error:
        raise Conflict("The model has a corpus of that name already.", field="name") from error
    services.queue.wake("index", corpus.id)
    with services.db.reading() as session:
        found = corpora.by_id(session, corpus.id)
    assert found is not None
    return found


def remove_corpus(services: Services, model_name: str, name: str) -> None:
    """Forget a corpus; its file is not ours and stays.

    Raises:
        NotFound: No such model or corpus.
    """
    with services.db.transaction() as session:
        model = models.by_name(session, model_name)
        corpus = corpora.by_name(session, model, name) if model else None
        if corpus is None:
            raise NotFound("There is no such corpus.")
        corpora.remove(session, corpus)
        log_entries.append(session, "corpus.removed", model=model_name, corpus=name)


def index_corpus(services: Services, corpus_id: UUID, *, go_on: Callable[[], bool] = lambda: True) -> None:
    """Index a corpus from where it stands to its end, as long as `go_on` lets us; one at a time in a process."""
    if not ONE.acquire(blocking=False):
        return  # the sweep comes back to it
    try:
        _index(services, corpus_id, go_on)
    finally:
        ONE.release()


def _index(services: Services, corpus_id: UUID, go_on: Callable[[], bool]) -> None:
    with services.db.reading() as session:
        corpus = corpora.by_id(session, corpus_id)
    if corpus is None or corpus.state != "indexing":
        return
    source, hasher = corpus_reader(corpus), Hasher(services.wrapper)
    cursor = Place(**corpus.cursor) if corpus.cursor else None
    try:
        rows = source.rows(cursor)
        while go_on() and (chunk := _chunk(rows)):
            if not _keep(services, corpus, chunk, hasher, source):
                return  # another worker is at it, or it was removed
    except (UnreadableCorpus, OSError) as error:
        logger.warning("a corpus cannot be read", corpus=corpus_id, error=type(error).__name__)
        reason = str(error) if isinstance(error, UnreadableCorpus) else "it cannot be read"
        _finish(services, corpus, state="failed", reason=reason)
        return
    if go_on():
        _finish(services, corpus, state="ready", done=corpus.size, indexed_at=datetime.now(UTC))


def _chunk(rows: Iterator[Row]) -> list[Row]:
    chunk: list[Row] = []
    held = 0
    for row in rows:
        chunk.append(row)
        held += len(row.text)
        if len(chunk) >= AT_ONCE or held > LARGEST_CHUNK:
            break
    return chunk


def _keep(services: Services, corpus: Corpus, chunk: list[Row], hasher: Hasher, source: CorpusReader) -> bool:
    """Index a few records and move the cursor; false if the cursor is not where it was."""
    entries = list(_entries(corpus, chunk, hasher))
    place = asdict(chunk[-1].place)
    done, count = source.done(chunk[-1].place), corpus.records + len(chunk)
    with services.db.transaction("index") as session:
        if not corpora.advance(session, corpus, place, done=done, records=count):
            return False
        corpora.add_records(session, entries)
    corpus.cursor, corpus.records = place, count
    return True


def _entries(corpus: Corpus, chunk: list[Row], hasher: Hasher) -> Iterator[dict[str, Any]]:
    for row in chunk:
        named = [(kind, row.columns[column]) for column, kind in corpus.columns.items() if row.columns.get(column)]
        try:
            yield {
                "corpus_id": corpus.id, **asdict(row.place), "text_hash": hasher.number("text", row.text.encode()),
                "identifiers": hasher.identities(row.text, named, corpus.phone_region),
                "bands": near_copies.bands(hasher, row.text), "lexemes": hasher.lexemes(row.text),
            }  # fmt: skip
        except Exception as error:  # whatever a text may do to a library: one must not keep all the others waiting
            place, kind = row.place.start, type(error).__name__
            raise UnreadableCorpus(f"the record at {place} cannot be indexed ({kind})") from None


def _finish(services: Services, corpus: Corpus, **values: Any) -> None:
    with services.db.transaction() as session:
        corpora.advance(session, corpus, corpus.cursor, **values)
    services.queue.wake("sweep")  # requests that waited for it can be resolved
