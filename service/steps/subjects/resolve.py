"""resolve: from a request's identities and names to the records of the corpora that it is about.

What an identifier names is certain, and so are its near copies unless they are very many; what only a name names waits
for somebody to approve it. Searching and reading is done before the transaction, which asks whether all is as it was.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from service.audit import commitments
from service.bootstrap import Services
from service.db import corpora, log_entries, outbox, requests
from service.db.tables import DeletionRequest
from service.domain.states import Hold, RequestStatus
from service.observability.tracing import span
from service.privacy.randomness import random_bytes
from service.privacy.records import request_data_key, request_subject
from service.subjects.search import SearchableCorpora, Unsearchable, read_texts, search, searched_corpora

LOOK_AHEAD = 20
LONG_WORD = 16  # characters; longer ones are several tokens
AT_ONCE = threading.BoundedSemaphore(2)  # in a process: who waits for files keeps no publication waiting


def resolve_request(services: Services, request_id: UUID, *, go_on: Callable[[], bool] = lambda: True) -> None:
    """Find what a request is about, and let it go on, wait for approval, or end with nothing found; then the next ones.

    After approval it is called again, and takes what was found then. As long as a corpus is not as it was indexed, or
    could not be, nothing is decided, and the request says so.
    """
    if not AT_ONCE.acquire(blocking=False):
        return  # whoever is at it takes this one, too
    try:
        done: set[UUID] = set()
        following = [request_id]
        while following and go_on():
            _resolve(services, following[0])
            done.add(following[0])
            with services.db.reading() as session:
                following = [n for n in requests.unresolved(session, LOOK_AHEAD) if n not in done]
    finally:
        AT_ONCE.release()


def _resolve(services: Services, request_id: UUID) -> None:
    with services.db.reading() as session:
        request = requests.by_id(session, request_id)
        if not _is_due(request):
            return
        assert request is not None
        before = request.resolution
        try:
            sources = SearchableCorpora(services.wrapper, session, request.model_id)
            if any(corpus["state"] == "indexing" for corpus in sources.searched):
                return  # until it is indexed
            decided = before or _found(services, sources, request)
            texts = _texts(sources, request, decided)
        except Unsearchable as error:
            _say(services, request_id, error)
            return
    with (
        span("resolve", request.traceparent, request=str(request_id)),
        services.db.transaction("resolve") as session,
    ):
        request = requests.by_id(session, request_id, lock=True)
        if not _is_due(request):
            return
        assert request is not None
        if (
            request.resolution != before
            or searched_corpora(corpora.of_model(session, request.model_id)) != sources.searched
        ):
            return  # somebody has decided meanwhile, or the corpora are not those that were searched
        request.resolution, request.reason = decided, None
        if texts is None:
            request.hold = Hold.APPROVAL
            outbox.enqueue_alert(session, request_id, "awaiting_approval")
            log_entries.append(session, "request.matched", ref=request.ref, records=len(decided["records"]))
        else:
            _take(services, session, request, texts, decided)
    services.queue.wake("batch", request.model_id)
    services.queue.wake("deliver")


def _is_due(request: DeletionRequest | None) -> bool:
    return request is not None and request.status == RequestStatus.PENDING and request.hold == Hold.RESOLVE


def _found(services: Services, sources: SearchableCorpora, request: DeletionRequest) -> dict[str, Any]:
    """What is to be decided on."""
    found = search(sources, request_subject(services.wrapper, request))
    kinds = {kind: [record.id for record in records] for kind, records in found.kinds.items()}
    return {
        "kinds": kinds, "records": sorted(n for ids in kinds.values() for n in ids), "searched": sources.searched,
        "approvals": max(request.model.policy.get("approvals", 0), int(found.ambiguous)), "approved": False,
    }  # fmt: skip


def _texts(sources: SearchableCorpora, request: DeletionRequest, decided: dict[str, Any]) -> list[bytes] | None:
    """The texts to take, each once; None if somebody has to approve them first.

    One short word alone, as "ok" in a table, is left out beside others: if nothing can be measured on it, that would
    stop all of them.
    """
    nothing = not decided["records"] and not request.records_count
    if not (decided["approved"] or decided["approvals"] == 0 or nothing):
        return None
    found = read_texts(sources, decided["records"])
    whole = [text for _, text in found if len(text.strip()) > LONG_WORD or not text.strip().isalnum()]
    return list(dict.fromkeys(text.encode() for text in whole or [text for _, text in found]))


def _take(
    services: Services, session: Session, request: DeletionRequest, texts: Sequence[bytes], decided: dict[str, Any]
) -> None:
    """Seal what was found into the request; with nothing at all, the request ends."""
    envelope, first = request_data_key(services.wrapper, request), request.records_count
    nonces = [random_bytes(commitments.NONCE) for _ in texts]
    pairs = list(zip(nonces, texts, strict=True))
    sealed = [envelope.seal(f"record/{first + i}", nonce + text) for i, (nonce, text) in enumerate(pairs)]
    requests.add_records(session, request.id, first, sealed)
    request.records_count, request.results_count, request.hold = first + len(texts), len(texts), None
    leaves = [commitments.commit(nonce, text) for nonce, text in pairs]
    ended = request.records_count == 0
    if ended:
        requests.move(session, [request], RequestStatus.COMPLETED, reason="nothing_found")
    log_entries.append(
        session, "request.nothing_found" if ended else "request.resolved", ref=request.ref, records=len(texts),
        commitment=commitments.request_commitment(request.ref, leaves).hex(),
        searched=[{"corpus": c["corpus"], "records": c["records"]} for c in decided["searched"]],
    )  # fmt: skip


def _say(services: Services, request_id: UUID, error: Unsearchable) -> None:
    """Why a request cannot be resolved; the operator is told, and the sweep tries it again.

    What was decided on the records of an index that is no more is decided anew.
    """
    with services.db.transaction() as session:
        request = requests.by_id(session, request_id, lock=True)
        if request is None or not _is_due(request):
            return
        if request.reason != str(error):
            outbox.enqueue_alert(session, request_id, "not_searchable")
        request.reason = str(error)
        if request.resolution is not None and error.outdates:
            request.resolution = None
            requests.clear_approvals(session, request_id)
