"""index: read a corpus once, and store the position of each record with keyed hashes of its identifiers and words.

A transaction stores some hundred records and moves the cursor of the corpus. After a kill, indexing goes on from the
cursor. Of two workers at one corpus, one fails to move the cursor and stops.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy.exc import IntegrityError

from service.bootstrap import Services
from service.confined import OutsideRoots, refused_as_invalid
from service.db import corpora, log_entries, models
from service.db.corpus_tables import Corpus
from service.domain.errors import Conflict, Invalid, NotFound
from service.observability.logging import get_logger
from service.subjects import near_copies
from service.subjects.identifiers import Hasher
from service.subjects.readers import CorpusReader, Place, Row, UnreadableCorpus, detect_form
from service.subjects.search import corpus_reader

logger = get_logger(__name__)
CHUNK_RECORDS = 500  # the most records of a transaction
CHUNK_CHARACTERS = 8 << 20  # a chunk ends after so many characters
SLOT = threading.BoundedSemaphore(1)  # one indexing per process, so that other tasks do not wait for a free thread


def add_corpus(
    services: Services,
    model_name: str,
    *,
    name: str,
    path: str,
    form: str | None,
    text_column: str,
    columns: dict[str, str],
    phone_region: str | None,
) -> Corpus:
    """Register a corpus of a model, to be indexed.

    Args:
        services: The services of this process.
        model_name: The model that was trained on the corpus.
        name: The corpus' name.
        path: A file or folder on the server, absolute.
        form: The file format; None: by the path.
        text_column: The column or member that holds the text.
        columns: Column -> identity type.
        phone_region: The country of telephone numbers without a prefix.

    Raises:
        NotFound: The model does not exist.
        Invalid: The path does not exist, or holds no record with text; or a column does not exist.
        Conflict: The name is taken.
    """
    source, size = _readable_corpus(services, path, form, text_column)
    if columns and not set(columns) <= source.columns():
        raise Invalid("The corpus has no such column.", field="columns")
    corpus = Corpus(name=name, path=str(source.path), form=source.form, text_column=text_column, size=size)
    corpus.columns, corpus.phone_region = columns, phone_region
    try:
        with services.db.transaction() as session:
            model = models.existing(session, model_name)
            corpus.model_id = model.id
            session.add(corpus)
            session.flush()
            log_entries.append(session, "corpus.added", model=model_name, corpus=corpus.name)
    except IntegrityError as error:
        raise Conflict("The model has a corpus of that name already.", field="name") from error
    services.queue.wake("index", corpus.id)
    with services.db.reading() as session:
        stored = corpora.by_id(session, corpus.id)
    assert stored is not None
    return stored


def _readable_corpus(services: Services, path: str, form: str | None, text_column: str) -> tuple[CorpusReader, int]:
    """A reader of the corpus at `path`, and the size of the corpus.

    Raises:
        Invalid: The path is not in a root, does not exist, cannot be read, or holds no record with text.
    """
    with refused_as_invalid("path"):
        root, real = services.corpus_roots.find(path)
        source = CorpusReader(root, real, form or detect_form(root, real), text_column)
        try:
            size, first = source.size(), next(source.rows(), None)
        except UnreadableCorpus as error:
            raise Invalid(str(error), field="path") from error
    if first is None:
        raise Invalid("The corpus holds no text.", field="path")
    return source, size


def remove_corpus(services: Services, model_name: str, name: str) -> None:
    """Delete a corpus and its index; its file belongs to the customer and stays.

    Raises:
        NotFound: The model or corpus does not exist.
    """
    with services.db.transaction() as session:
        model = models.by_name(session, model_name)
        corpus = corpora.by_name(session, model, name) if model else None
        if corpus is None:
            raise NotFound("There is no such corpus.")
        corpora.remove(session, corpus)
        log_entries.append(session, "corpus.removed", model=model_name, corpus=name)


def index_corpus(services: Services, corpus_id: UUID, *, go_on: Callable[[], bool] = lambda: True) -> None:
    """Index a corpus from its cursor to its end, while `go_on()` is true; one corpus at a time in a process."""
    if not SLOT.acquire(blocking=False):
        return  # the sweep wakes this step again
    try:
        index_from_cursor(services, corpus_id, go_on)
    finally:
        SLOT.release()


def index_from_cursor(services: Services, corpus_id: UUID, go_on: Callable[[], bool]) -> None:
    """Index a corpus from its cursor, chunk by chunk."""
    with services.db.reading() as session:
        corpus = corpora.by_id(session, corpus_id)
    if corpus is None or corpus.state != "indexing":
        return
    hasher = Hasher(services.wrapper)
    cursor = Place(**corpus.cursor) if corpus.cursor else None
    try:
        source = corpus_reader(services.corpus_roots, corpus)
        rows = source.rows(cursor)
        while go_on() and (chunk := _next_chunk(rows)):
            if not _store_chunk(services, corpus, chunk, hasher, source):
                return  # another worker indexes the corpus, or it was removed
    except (UnreadableCorpus, OSError) as error:
        logger.warning("a corpus cannot be read", corpus=corpus_id, error=type(error).__name__)
        reason = str(error) if isinstance(error, UnreadableCorpus | OutsideRoots) else "it cannot be read"
        _end_indexing(services, corpus, state="failed", reason=reason)
        return
    if go_on():
        _end_indexing(services, corpus, state="ready", done=corpus.size, indexed_at=datetime.now(UTC))


def _next_chunk(rows: Iterator[Row]) -> list[Row]:
    """The next records for one transaction; empty at the end of the corpus.

    Raises:
        UnreadableCorpus: There is no such record. The corpus fails whatever library gave it up, and the step does not
            hang.
        OSError: A file cannot be read.
    """
    chunk: list[Row] = []
    characters = 0
    try:
        for row in rows:
            chunk.append(row)
            characters += len(row.text)
            if len(chunk) >= CHUNK_RECORDS or characters > CHUNK_CHARACTERS:
                break
    except (UnreadableCorpus, OSError):
        raise
    except Exception as error:
        raise UnreadableCorpus(f"it cannot be read ({type(error).__name__})") from None
    return chunk


def _store_chunk(services: Services, corpus: Corpus, chunk: list[Row], hasher: Hasher, source: CorpusReader) -> bool:
    """Index a chunk of records and move the cursor; false if another worker moved the cursor."""
    entries = list(_entries(corpus, chunk, hasher))
    place = asdict(chunk[-1].place)
    done, count = source.done(chunk[-1].place), corpus.records + len(chunk)
    with services.db.transaction("index") as session:
        if not corpora.advance(session, corpus, place, done=done, records=count):
            return False
        corpora.add_records(session, entries)
    corpus.cursor, corpus.records = place, count
    return True


def _entries(corpus: Corpus, chunk: list[Row], hasher: Hasher) -> Iterator[dict[str, object]]:
    """The index entry of each record."""
    for row in chunk:
        named = [(kind, row.columns[column]) for column, kind in corpus.columns.items() if row.columns.get(column)]
        try:
            yield {
                "corpus_id": corpus.id,
                **asdict(row.place),
                "text_hash": hasher.number("text", row.text.encode()),
                "identifiers": hasher.identities(row.text, named, corpus.phone_region),
                "bands": near_copies.bands(hasher, row.text),
                "lexemes": hasher.lexemes(row.text),
            }
        except Exception as error:  # a text may break any library; then the corpus fails, and the step does not hang
            position, kind = row.place.start, type(error).__name__
            raise UnreadableCorpus(f"the record at {position} cannot be indexed ({kind})") from None


def _end_indexing(services: Services, corpus: Corpus, **values: object) -> None:
    """Store the state in which indexing ended."""
    with services.db.transaction() as session:
        corpora.advance(session, corpus, corpus.cursor, **values)
    services.queue.wake("sweep")  # requests that waited for the corpus can be resolved now
