"""`/v1/models/{name}/corpora`: training data to look people up in."""

from fastapi import APIRouter, Response

from service.api.deps import Admin, Reader, ServicesDep
from service.api.paging import Cursor, Limit
from service.db import corpora, models
from service.db.corpus_tables import Corpus
from service.domain.errors import NotFound
from service.schemas.base import Listing
from service.schemas.subjects import CorpusIn, CorpusOut
from service.steps.subjects.index import add_corpus, remove_corpus

router = APIRouter(prefix="/v1/models/{name}/corpora", tags=["corpora"])


def shown(corpus: Corpus) -> CorpusOut:
    """A corpus as it is answered."""
    return CorpusOut(
        name=corpus.name, form=corpus.form, state=corpus.state, reason=corpus.reason, records=corpus.records,
        progress=corpus.done / corpus.size if corpus.size else 1.0, created_at=corpus.created_at,
        indexed_at=corpus.indexed_at,
    )  # fmt: skip


@router.post("", status_code=201)
def add(name: str, body: CorpusIn, services: ServicesDep, _: Admin) -> CorpusOut:
    """Register a corpus; it is indexed in the background, and requests wait until it is."""
    return shown(add_corpus(services, name, **body.model_dump()))


@router.get("")
def listing(
    name: str, services: ServicesDep, _: Reader, cursor: Cursor = None, limit: Limit = 50
) -> Listing[CorpusOut]:
    """A model's corpora, by name."""
    with services.db.reading() as session:
        model = models.by_name(session, name)
        if model is None:
            raise NotFound("There is no model of that name.")
        page = corpora.listing(session, model, cursor, limit)
    return Listing(items=[shown(c) for c in page.items], next_cursor=page.next_cursor)


@router.get("/{corpus}")
def get(name: str, corpus: str, services: ServicesDep, _: Reader) -> CorpusOut:
    """One corpus."""
    with services.db.reading() as session:
        model = models.by_name(session, name)
        found = corpora.by_name(session, model, corpus) if model else None
    if found is None:
        raise NotFound("There is no such corpus.")
    return shown(found)


@router.delete("/{corpus}", status_code=204)
def remove(name: str, corpus: str, services: ServicesDep, _: Admin) -> Response:
    """Forget a corpus and its index, as before indexing a changed one again; its files stay."""
    remove_corpus(services, name, corpus)
    return Response(status_code=204)
