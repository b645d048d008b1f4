"""resolve: from a request's identities and names to the matching records of the corpora.

A record that an identifier matches is certain, and so are its near copies. If there are very many of them, or if only a
name matches a record, a person has to approve. If there are too many to compare, the request is rejected. The step
searches and reads before its transaction; the transaction checks that nothing has changed meanwhile.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy.orm import Session

from service.audit import commitments
from service.bootstrap import Services
from service.db import corpora, log_entries, outbox, requests
from service.db.tables import DeletionRequest
from service.domain.disclosure import count_range, power_of_two
from service.domain.states import Hold, RequestStatus
from service.domain.subject import Resolution
from service.observability.tracing import span
from service.privacy.records import request_data_key, request_subject, seal_records
from service.subjects.errors import TooManyMatches, Unsearchable
from service.subjects.search import (
    SearchableCorpora,
    read_records,
    search,
    searched_corpora,
)

LOOK_AHEAD = 20  # requests that one query returns
MAX_TEXTS = 20_000  # that are read to search for one person; the texts of that many would be too long for a request
LONG_WORD = 16  # characters; a longer word has several tokens
IN_WORK: set[UUID] = set()  # requests that a call of this process resolves now
IN_WORK_LOCK = threading.Lock()
SLOTS = threading.BoundedSemaphore(2)  # calls per process, so that other tasks do not wait for a free thread


def resolve_request(services: Services, request_id: UUID, *, go_on: Callable[[], bool] = lambda: True) -> None:
    """Find the records that a request is about, then do the same for other unresolved requests.

    The request goes on, waits for approval, or ends because nothing matches. After approval this step is called again
    and adds the approved records to the request. While a corpus is not indexed, could not be indexed or has changed,
    the step decides nothing; the request says why.
    """
    if not SLOTS.acquire(blocking=False):
        return  # a call that is under way will resolve this request, too
    try:
        done: set[UUID] = set()
        unresolved = [request_id]
        while unresolved and go_on():
            with _in_work(unresolved[0]) as is_mine:
                if is_mine:
                    _resolve_one(services, unresolved[0])
            done.add(unresolved[0])
            with services.db.reading() as session:
                unresolved = [other for other in requests.unresolved(session, LOOK_AHEAD) if other not in done]
    finally:
        SLOTS.release()


@contextmanager
def _in_work(request_id: UUID) -> Iterator[bool]:
    """Whether no other call of this process resolves the request now."""
    with IN_WORK_LOCK:
        is_mine = request_id not in IN_WORK
        IN_WORK.add(request_id)
    try:
        yield is_mine
    finally:
        if is_mine:
            IN_WORK.discard(request_id)


def _resolve_one(services: Services, request_id: UUID) -> None:
    """Resolve one request, if it is unresolved and all corpora are indexed."""
    with services.db.reading() as session:
        request = requests.by_id(session, request_id)
    if request is None or not _is_unresolved(request):
        return
    before, roots = request.resolution, services.corpus_roots
    try:
        sources = SearchableCorpora(services.wrapper, roots, services.db, request.model_id, max_texts=MAX_TEXTS)
        if any(corpus["state"] == "indexing" for corpus in sources.searched):
            return  # the sweep wakes this step again
        resolution = before or _search_result(services, sources, request)
        texts = _texts_to_add(sources, request, resolution)
    except TooManyMatches as error:
        _reject(services, request_id, str(error))
        return
    except Unsearchable as error:
        _store_unsearchable(services, request_id, error)
        return
    with (
        span("resolve", request.traceparent, request=str(request_id)),
        services.db.transaction("resolve") as session,
    ):
        request = requests.by_id(session, request_id, lock=True)
        if request is None or not _is_unresolved(request) or request.resolution != before:
            return  # the request was resolved, approved or cancelled meanwhile
        if searched_corpora(corpora.of_model(session, request.model_id)) != sources.searched:
            return  # the corpora have changed since the search
        request.resolution, request.reason = resolution, None
        if before is None:  # else somebody has approved what was searched for then
            request.searched_at = datetime.now(UTC)
        if texts is None:
            request.hold = Hold.APPROVAL
            outbox.enqueue_alert(session, request_id, "awaiting_approval")
            matched = count_range(len(resolution["records"]))
            log_entries.append(session, "request.matched", ref=request.ref, records=matched)
        elif not texts and not request.records_count and request.probes:
            _refuse(session, request, "probes_not_asked")
        else:
            _add_texts(services, session, request, texts, resolution)
    services.queue.wake("batch", request.model_id)
    services.queue.wake("deliver")


def _is_unresolved(request: DeletionRequest) -> bool:
    return request.status == RequestStatus.PENDING and request.hold == Hold.RESOLVE


def _search_result(services: Services, sources: SearchableCorpora, request: DeletionRequest) -> Resolution:
    """The resolution of a request: the ids of matching records, and how many approvals they need."""
    matches = search(sources, request_subject(services.wrapper, request))
    kinds = {kind: [record.id for record in records] for kind, records in matches.kinds.items()}
    return {
        "kinds": kinds,
        "records": sorted(record_id for ids in kinds.values() for record_id in ids),
        "searched": sources.searched,
        "approvals": max(request.model.policy.get("approvals", 0), int(matches.need_approval(request.model.policy))),
        "approved": False,
    }


def _texts_to_add(sources: SearchableCorpora, request: DeletionRequest, resolution: Resolution) -> list[bytes] | None:
    """The texts to add to a request, each once; None if they need approval first.

    A single short word, such as "ok" in a table, is left out if there are other texts: if nothing can be measured on
    it, the whole request would be rejected.
    """
    nothing = not resolution["records"] and not request.records_count
    if not (resolution["approved"] or resolution["approvals"] == 0 or nothing):
        return None
    texts = [text for _, text in read_records(sources, resolution["records"])]
    longer = [text for text in texts if len(text.strip()) > LONG_WORD or not text.strip().isalnum()]
    return list(dict.fromkeys(text.encode() for text in longer or texts))


def _add_texts(
    services: Services, session: Session, request: DeletionRequest, texts: Sequence[bytes], resolution: Resolution
) -> None:
    """Seal texts into a request; a request without any text ends."""
    data_key, first = request_data_key(services.wrapper, request), request.records_count
    records = seal_records(data_key, texts, first)
    requests.add_records(session, request.id, first, [record.sealed for record in records])
    request.records_count, request.results_count, request.hold = first + len(texts), len(texts), None
    ended = request.records_count == 0
    if ended:
        requests.move(session, [request], RequestStatus.COMPLETED, reason="nothing_found")
    log_entries.append(
        session,
        "request.nothing_found" if ended else "request.resolved",
        ref=request.ref,
        records=count_range(len(texts)),
        commitment=commitments.request_commitment(request.ref, [record.commitment for record in records]).hex(),
        searched=[
            {"corpus": corpus["corpus"], "records": f"<= {power_of_two(corpus['records'])}"}
            for corpus in resolution["searched"]
        ],
    )


def _refuse(session: Session, request: DeletionRequest, reason: str) -> None:
    """End a request with a reason; its operator is alerted."""
    request.hold = None
    requests.move(session, [request], RequestStatus.REJECTED, reason=reason)
    log_entries.append(session, "requests.rejected", refs=[request.ref], at_stage="resolve")


def _reject(services: Services, request_id: UUID, reason: str) -> None:
    """End a request that no search will resolve."""
    with services.db.transaction("refuse") as session:
        request = requests.by_id(session, request_id, lock=True)
        if request is None or not _is_unresolved(request):
            return
        _refuse(session, request, reason)
    services.queue.wake("deliver")


def _store_unsearchable(services: Services, request_id: UUID, error: Unsearchable) -> None:
    """Store why a request cannot be resolved, and alert the operator; the sweep wakes the step again.

    A resolution with records of an index that no longer exists is discarded.
    """
    with services.db.transaction() as session:
        request = requests.by_id(session, request_id, lock=True)
        if request is None or not _is_unresolved(request):
            return
        if request.reason != str(error):
            outbox.enqueue_alert(session, request_id, "not_searchable")
        request.reason = str(error)
        if request.resolution is not None and error.index_is_outdated:
            request.resolution = None
            requests.clear_approvals(session, request_id)
