"""approve: people look at what a request would unlearn, and say yes or no to it."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from service.bootstrap import Services
from service.db import jobs, log_entries, models, requests
from service.db.tables import DeletionRequest
from service.domain.deadlines import due_at
from service.domain.errors import Conflict, Forbidden, Invalid, NotFound
from service.domain.states import Hold, RequestStatus
from service.privacy.records import open_records
from service.subjects.search import SearchableCorpora, Unsearchable, check_subject, read_texts, search

SNIPPET = 300  # characters
PREVIEWED = 50  # matches


def approve_request(services: Services, request_id: UUID, api_key_id: UUID, matches: Sequence[int] | None) -> None:
    """Approve a request that waits for it, with all that it matches or with some of it.

    Once as many keys as are needed have approved the same, it goes on. Whoever submitted it cannot.

    Raises:
        NotFound: No such request.
        Conflict: It does not wait for approval, or this key approved it already.
        Forbidden: This key submitted it.
        Invalid: `matches` names what it does not match.
    """
    with services.db.transaction("approve") as session:
        request = _waiting(requests.by_id(session, request_id, lock=True))
        if request.api_key_id == api_key_id:
            raise Forbidden("Whoever submitted a request cannot approve it.")
        found = dict(request.resolution or {"records": [], "approvals": request.model.policy.get("approvals", 1)})
        chosen = sorted(set(found["records"] if matches is None else matches))
        if not set(chosen) <= set(found["records"]):
            raise Invalid("The request does not match these.", field="matches")
        if not chosen and not request.records_count:
            raise Invalid("Nothing would be left; refuse the request instead.", field="matches")
        if chosen != found["records"]:
            requests.clear_approvals(session, request_id)  # others approved something else
            found["records"] = chosen
        approvals = requests.add_approval(session, request_id, api_key_id)
        if approvals is None:
            raise Conflict("This key has approved the request already.")
        if approvals >= found["approvals"]:
            found["approved"] = True
            request.hold = Hold.RESOLVE if request.subject is not None else None
        request.resolution = found
        log_entries.append(session, "request.approved", ref=request.ref, key=str(api_key_id), records=len(chosen))
    services.queue.wake("resolve", request_id)
    services.queue.wake("batch", request.model_id)


def reject_request(services: Services, request_id: UUID, api_key_id: UUID, reason: str) -> None:
    """Refuse a request that waits for approval: it ends as rejected.

    Raises:
        NotFound: No such request.
        Conflict: It does not wait for approval.
    """
    with services.db.transaction("refuse") as session:
        request = _waiting(requests.by_id(session, request_id, lock=True))
        request.hold = None
        requests.move(session, [request], RequestStatus.REJECTED, reason=reason)
        log_entries.append(session, "requests.rejected", key=str(api_key_id), refs=[request.ref], at_stage="approval")
    services.queue.wake("deliver")


def list_matches(services: Services, request_id: UUID, after: int, limit: int) -> list[dict[str, Any]]:
    """What a request that waits would unlearn, with the beginning of each text, for whoever has to approve it.

    Raises:
        NotFound: No such request.
        Conflict: It does not wait for approval, or a corpus has changed: then it is searched for anew.
    """
    with services.db.reading() as session:
        request = _waiting(requests.by_id(session, request_id))
        decided = request.resolution or {"records": [], "kinds": {}}
        kinds = {n: kind for kind, numbers in decided["kinds"].items() for n in numbers}
        given = [text.decode() for _, text in open_records(services.wrapper, request)] if after < 0 else []
        page = [number for number in decided["records"] if number > after][:limit]
        try:
            found = read_texts(SearchableCorpora(services.wrapper, session, request.model_id), page)
        except Unsearchable as error:
            failed: Unsearchable | None = error
        else:
            failed = None
    if failed is not None and not failed.outdates:
        raise Conflict(f"What was found cannot be read now ({failed}).")
    if failed is not None:
        _search_again(services, request_id)
        raise Conflict(f"What was found is not there any more ({failed}); it is searched for anew.")
    submitted = [{"match": None, "kind": "submitted", "text": text[:SNIPPET]} for text in given]
    return submitted + [{"match": r.id, "kind": kinds[r.id], "text": text[:SNIPPET]} for r, text in found]


def _search_again(services: Services, request_id: UUID) -> None:
    with services.db.transaction() as session:
        request = requests.by_id(session, request_id, lock=True)
        if request is not None and request.status == RequestStatus.PENDING and request.hold == Hold.APPROVAL:
            request.resolution, request.hold = None, Hold.RESOLVE
            requests.clear_approvals(session, request_id)
    services.queue.wake("resolve", request_id)


def preview_request(
    services: Services,
    model_name: str,
    subject: dict[str, Any],
    regulation: str,
    received_at: datetime | None,
    *,
    texts: bool,
) -> dict[str, Any]:
    """What a subject matches now, as `schemas.Preview` has it.

    Raises:
        Invalid: No such model, or an identity that can match nothing.
        Conflict: A corpus is being indexed, or has changed.
    """
    check_subject(services.wrapper, subject)
    with services.db.reading() as session:
        model = models.by_name(session, model_name)
        if model is None:
            raise Invalid("There is no model of that name.", field="model", code="unknown_model")
        try:
            sources = SearchableCorpora(services.wrapper, session, model.id)
            found = search(sources, subject)
            ids = [record.id for records in found.kinds.values() for record in records][:PREVIEWED]
            read = read_texts(sources, ids) if texts else None
        except Unsearchable as error:
            raise Conflict(f"Nobody can be looked up now: {error}.") from None
        busy = jobs.has_active_job(session, model.id)
    if any(corpus["state"] == "indexing" for corpus in found.searched):
        raise Conflict("A corpus is being indexed; ask again when it is.")
    kinds = {record.id: kind for kind, records in found.kinds.items() for record in records}
    needed = max(model.policy.get("approvals", 0), int(found.ambiguous))
    wait = model.policy.get("max_wait_seconds")
    wait = services.settings.max_wait_seconds if wait is None else wait
    return {
        "model": model_name,
        "counts": {kind: len(records) for kind, records in found.kinds.items()} | {"form_letter": found.form_letters},
        "searched": found.searched, "needs_approval": needed > 0,
        "due_at": due_at(received_at or datetime.now(UTC), regulation),
        "batch": "after the job that is running" if busy else f"within {wait:g} s",
        "matches": read and [{"match": r.id, "kind": kinds[r.id], "text": text[:SNIPPET]} for r, text in read],
    }  # fmt: skip


def _waiting(request: DeletionRequest | None) -> DeletionRequest:
    if request is None:
        raise NotFound("There is no such request.")
    if request.status != RequestStatus.PENDING or request.hold != Hold.APPROVAL:
        raise Conflict("The request does not wait for approval.")
    return request
