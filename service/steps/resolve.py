"""resolve: from a request's identities and names to the records of the corpora that it is about.

What an identifier names is certain, and so are its near copies unless they are very many; what only a name names waits
for somebody to approve it. Searching and reading is done before the transaction, which asks whether all is as it was.
"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from service.app import Services
from service.db import audit, requests
from service.db.tables import DeletionRequest
from service.domain.states import Hold, RequestStatus
from service.privacy import commitments
from service.privacy.records import envelope_of, subject_of
from service.subjects.search import CorpusChanged, search, texts_of


def resolve(services: Services, request_id: UUID) -> None:
    """Find what a request is about, and let it go on, wait for approval, or end with nothing found.

    After approval it is called again, and takes what was found then.
    """
    with services.db.reading() as session:
        request = requests.by_id(session, request_id)
        if not _is_due(request):
            return
        assert request is not None
        try:
            decided = request.resolution or _found(services, session, request)
            texts = _texts(services, session, request, decided)
        except CorpusChanged as error:
            _say(services, request_id, f"corpus_changed: {error}")
            return
        if any(corpus["state"] == "indexing" for corpus in decided["searched"]):
            return  # until it is indexed; the sweep comes back to this
    with services.db.transaction("resolve") as session:
        request = requests.by_id(session, request_id, lock=True)
        if not _is_due(request):
            return
        assert request is not None
        request.resolution, request.reason = decided, None
        if texts is None:
            request.hold = Hold.APPROVAL
            requests.alert(session, request_id, "awaiting_approval")
            audit.append(session, "request.matched", ref=request.ref, records=len(decided["records"]))
        else:
            _take(services, session, request, texts, decided)
    services.queue.wake("batch", request.model_id)
    services.queue.wake("deliver")


def _is_due(request: DeletionRequest | None) -> bool:
    return request is not None and request.status == RequestStatus.PENDING and request.hold == Hold.RESOLVE


def _found(services: Services, session: Session, request: DeletionRequest) -> dict[str, Any]:
    """What is to be decided on."""
    found = search(services.wrapper, session, request.model_id, subject_of(services.wrapper, request))
    kinds = {kind: [record.id for record in records] for kind, records in found.kinds.items()}
    return {
        "kinds": kinds, "records": sorted(n for ids in kinds.values() for n in ids), "searched": found.searched,
        "approvals": max(request.model.policy.get("approvals", 0), int(found.ambiguous)), "approved": False,
    }  # fmt: skip


def _texts(
    services: Services, session: Session, request: DeletionRequest, decided: dict[str, Any]
) -> list[bytes] | None:
    """The texts to take, each once; None if somebody has to approve them first."""
    nothing = not decided["records"] and not request.records_count
    if not (decided["approved"] or decided["approvals"] == 0 or nothing):
        return None
    found = texts_of(services.wrapper, session, request.model_id, decided["records"])
    return list(dict.fromkeys(text.encode() for _, text in found))


def _take(
    services: Services, session: Session, request: DeletionRequest, texts: Sequence[bytes], decided: dict[str, Any]
) -> None:
    """Seal what was found into the request; with nothing at all, the request ends."""
    envelope, first = envelope_of(services.wrapper, request), request.records_count
    nonces = [commitments.new_nonce() for _ in texts]
    pairs = list(zip(nonces, texts, strict=True))
    sealed = [envelope.seal(f"record/{first + i}", nonce + text) for i, (nonce, text) in enumerate(pairs)]
    requests.add_records(session, request.id, first, sealed)
    request.records_count, request.results_count, request.hold = first + len(texts), len(texts), None
    leaves = [commitments.commit(nonce, text) for nonce, text in pairs]
    ended = request.records_count == 0
    if ended:
        requests.move(session, [request], RequestStatus.COMPLETED, reason="nothing_found")
    audit.append(
        session, "request.nothing_found" if ended else "request.resolved", ref=request.ref, records=len(texts),
        commitment=commitments.request_commitment(request.ref, leaves).hex(),
        searched=[{"corpus": c["corpus"], "records": c["records"]} for c in decided["searched"]],
    )  # fmt: skip


def _say(services: Services, request_id: UUID, reason: str) -> None:
    """Why a request cannot be resolved; the sweep tries it again."""
    with services.db.transaction() as session:
        request = requests.by_id(session, request_id, lock=True)
        if request is not None and _is_due(request):
            request.reason = reason
