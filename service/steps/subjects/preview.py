"""preview: what a person would match, without a request.

A preview answers whether somebody is in the training data, and leaves no request behind. So it needs a scope of its
own, names few identities, and is counted in the database. It reads files, so only a few run at once in a process.
"""

import threading
from datetime import UTC, datetime
from uuid import UUID

from service.bootstrap import Services
from service.db import api_keys, jobs, models, waiting_jobs
from service.domain.deadlines import due_at
from service.domain.errors import Conflict, Invalid, RateLimited, Unavailable
from service.domain.json_types import JsonObject
from service.domain.subject import Subject
from service.schemas.subjects import MatchOut, Preview
from service.subjects.errors import Unsearchable
from service.subjects.marking import excerpt
from service.subjects.search import Matches, SearchableCorpora, check_subject, read_records, search

MAX_LOOKED_UP = 10  # identities and names of a preview
MAX_SHOWN = 50  # matches with their texts
MAX_TEXTS = 5000  # texts that a preview reads
SLOTS = threading.BoundedSemaphore(2)  # previews of a process, so that others find a free thread


def preview_request(
    services: Services,
    api_key_id: UUID,
    model_name: str,
    subject: Subject,
    regulation: str,
    received_at: datetime | None,
    *,
    texts: bool,
) -> Preview:
    """What a subject matches now; `texts` adds the beginning of some.

    Raises:
        Invalid: The model does not exist, there are too many identities, or one of them can match nothing.
        RateLimited: The API key has previewed too much in this minute.
        Unavailable: Too many previews are under way.
        Conflict: A corpus is being indexed, or the corpora cannot be searched.
    """
    count = len(subject["identities"]) + len(subject["names"])
    if count > MAX_LOOKED_UP:
        raise Invalid(f"A preview takes {MAX_LOOKED_UP} identities and names.", field="subject")
    check_subject(services.wrapper, subject)
    _count(services, api_key_id, count)
    if not SLOTS.acquire(blocking=False):
        raise Unavailable("Other previews are under way; try again.")
    try:
        model_id, batch, policy = _model(services, model_name)
        matches, shown = _search(services, model_id, subject, texts=texts)
    finally:
        SLOTS.release()
    counts = {kind: len(records) for kind, records in matches.kinds.items()}
    return Preview(
        model=model_name,
        counts=counts | {"form_letter": matches.form_letters},
        searched=matches.searched,
        needs_approval=matches.need_approval(policy) or policy.get("approvals", 0) > 0,
        due_at=due_at(received_at or datetime.now(UTC), regulation),
        batch=batch,
        matches=shown,
    )


def _count(services: Services, api_key_id: UUID, count: int) -> None:
    """Count what an API key looks up. The database counts, for all processes together.

    Raises:
        RateLimited: It is too much for this minute.
    """
    per_minute = services.settings.previews_per_minute
    with services.db.transaction() as session:
        within = api_keys.count_preview(session, api_key_id, count, per_minute)
    if not within:
        raise RateLimited(60 - datetime.now(UTC).second)


def _model(services: Services, name: str) -> tuple[UUID, str, JsonObject]:
    """The id of a model, when a request about it would be batched, and the model's policy."""
    with services.db.reading() as session:
        model = models.by_name(session, name)
        if model is None:
            raise Invalid("There is no model of that name.", field="model", code="unknown_model")
        wait = model.policy.get("max_wait_seconds")
        batch = f"within {services.settings.max_wait_seconds if wait is None else wait:g} s"
        if waiting_jobs.unclaimed(session, model):
            batch = "with the job that waits for a worker, if it has room"
        elif jobs.has_active_job(session, model.id):
            batch = "after the job that is running"
        return model.id, batch, model.policy


def _search(
    services: Services, model_id: UUID, subject: Subject, *, texts: bool
) -> tuple[Matches, list[MatchOut] | None]:
    """The matches of a subject, and some of them with the beginning of each text."""
    try:
        sources = SearchableCorpora(services.wrapper, services.corpus_roots, services.db, model_id, max_texts=MAX_TEXTS)
        matches = search(sources, subject)
        shown = _shown(sources, matches, subject) if texts else None
    except Unsearchable as error:
        raise Conflict(f"The corpora cannot be searched now: {error}.") from None
    if any(corpus["state"] == "indexing" for corpus in matches.searched):
        raise Conflict("A corpus is being indexed; ask again when that has ended.")
    return matches, shown


def _shown(sources: SearchableCorpora, matches: Matches, subject: Subject) -> list[MatchOut]:
    """The first matches with the beginning of each text."""
    kinds = {record.id: kind for kind, records in matches.kinds.items() for record in records}
    return [
        MatchOut(match=record.id, kind=kinds[record.id], **excerpt(text, subject))
        for record, text in read_records(sources, list(kinds)[:MAX_SHOWN])
    ]
