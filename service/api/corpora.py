"""`/v1/models/{name}/corpora`: training data in which people are looked up."""

from fastapi import APIRouter, Response

from service.api.deps import Admin, Reader, ServicesDep
from service.api.guard import GuardedRoute
from service.api.paging import Cursor, Limit
from service.db import corpora, models
from service.db.corpus_tables import Corpus
from service.domain.errors import NotFound
from service.schemas.base import Listing
from service.schemas.subjects import CorpusIn, CorpusOut
from service.steps.subjects.index import add_corpus, remove_corpus

router = APIRouter(prefix="/v1/models/{name}/corpora", tags=["corpora"], route_class=GuardedRoute)


def to_corpus_out(corpus: Corpus) -> CorpusOut:
    """The answer for a corpus."""
    return CorpusOut(
        name=corpus.name,
        form=corpus.form,
        state=corpus.state,
        reason=corpus.reason,
        records=corpus.records,
        progress=corpus.done / corpus.size if corpus.size else 1.0,
        created_at=corpus.created_at,
        indexed_at=corpus.indexed_at,
    )


@router.post("", status_code=201)
def add(name: str, body: CorpusIn, services: ServicesDep, _: Admin) -> CorpusOut:
    """Register a corpus. It is indexed in the background. Requests with a subject wait until the index is ready."""
    return to_corpus_out(add_corpus(services, name, **body.model_dump()))


@router.get("")
def listing(
    name: str, services: ServicesDep, _: Reader, cursor: Cursor = None, limit: Limit = 50
) -> Listing[CorpusOut]:
    """A model's corpora, by name."""
    with services.db.reading() as session:
        model = models.existing(session, name)
        page = corpora.listing(session, model, cursor, limit)
    return Listing(items=[to_corpus_out(corpus) for corpus in page.items], next_cursor=page.next_cursor)


@router.get("/{corpus}")
def get(name: str, corpus: str, services: ServicesDep, _: Reader) -> CorpusOut:
    """One corpus."""
    with services.db.reading() as session:
        model = models.by_name(session, name)
        row = corpora.by_name(session, model, corpus) if model else None
    if row is None:
        raise NotFound("There is no such corpus.")
    return to_corpus_out(row)


@router.delete("/{corpus}", status_code=204)
def remove(name: str, corpus: str, services: ServicesDep, _: Admin) -> Response:
    """Remove a corpus and its index, for example to index a changed corpus anew. Its files stay."""
    remove_corpus(services, name, corpus)
    return Response(status_code=204)
