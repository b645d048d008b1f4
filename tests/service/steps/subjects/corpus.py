"""A corpus in which one person has letters, copies and a namesake."""

import json
from uuid import UUID

from sqlalchemy import select, text

from service.db import corpora
from service.db.tables import DeletionRequest
from service.privacy.records import open_records
from service.steps.subjects.index import index_corpus
from service.steps.subjects.resolve import resolve_request

REQUESTS = "/v1/deletion-requests"


def resolve(services, request_id: str) -> None:
    """As a worker does it."""
    resolve_request(services, UUID(request_id))


ADDRESS = "maria.example@example.org"
LETTER = "Maria Example wrote on the fourth of May that her kitchen at 12 Sample Street had flooded twice{}."
HERS = [LETTER.format(f" (reply to {ADDRESS})"), f"Order 7 of {ADDRESS.upper()}: two lamps and a chair, paid in cash."]
COPY = LETTER.format("").replace("had flooded", "flooded").replace("Maria", "maria")
SOMEBODY_ELSES = LETTER.format(" (reply to boris@example.net)").replace("kitchen", "cellar")
NAMESAKE = "The painter Example, Maria, died in 1702 and left four altarpieces in the valley."


def corpus_body(tmp_path, texts, name="crm", **fields):
    """A body that registers these texts."""
    path = tmp_path / f"{name}.jsonl"
    path.write_text(
        "".join(json.dumps({"text": t, **({"id": f"k{i}"} if i < 30 else {})}) + "\n" for i, t in enumerate(texts))
    )
    return {"name": name, "path": str(path), **fields}


def fill(services, api, model, body) -> None:
    """Register a corpus and index it."""
    answer = api.post(f"/v1/models/{model}/corpora", json=body)
    assert answer.status_code == 201, answer.text
    with services.db.reading() as session:
        (corpus_id,) = corpora.unfinished(session)
    index_corpus(services, corpus_id)


def submit(api, **subject):
    """A request that names its person."""
    answer = api.post(REQUESTS, json={"model": "tiny", "subject": subject})
    assert answer.status_code == 202, answer.text
    return answer.json()


def texts_in(services, request_id) -> list[str]:
    """What a request would unlearn."""
    with services.db.transaction() as session:
        request = session.scalar(select(DeletionRequest).where(DeletionRequest.id == request_id))
        return [opened.decode() for _, opened in open_records(services.wrapper, request)]


def by_email(value=ADDRESS, form="raw"):
    """A subject with an address."""
    return {"identities": [{"type": "email", "format": form, "value": value}]}


def the_model_id(services):
    """The one model's id."""
    with services.db.reading() as session:
        return session.scalar(text("SELECT id FROM models"))
