"""approve: people look at the records that a request would unlearn, and approve or reject it."""

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

from service.bootstrap import Services
from service.db import jobs, log_entries, models, requests
from service.db.tables import DeletionRequest
from service.domain.deadlines import due_at
from service.domain.errors import Conflict, Forbidden, Invalid, NotFound
from service.domain.states import Hold, RequestStatus
from service.domain.subject import Resolution, Subject
from service.privacy.records import open_records
from service.schemas.subjects import MatchOut, Preview
from service.subjects.search import Matches, SearchableCorpora, Unsearchable, check_subject, read_records, search

SNIPPET = 300  # characters of a text
MAX_PREVIEWED = 50  # matches of a preview


def approve_request(services: Services, request_id: UUID, api_key_id: UUID, matches: Sequence[int] | None) -> None:
    """Approve a request that waits for approval, with all of its matches or some of them.

    The request goes on when enough API keys have approved the same matches. Its submitter cannot approve it.

    Raises:
        NotFound: The request does not exist.
        Conflict: The request does not wait for approval, or this API key approved it already.
        Forbidden: This API key submitted the request.
        Invalid: `matches` has a record that the request does not match, or nothing would be left.
    """
    with services.db.transaction("approve") as session:
        request = _awaiting_approval(requests.by_id(session, request_id, lock=True))
        if request.api_key_id == api_key_id:
            raise Forbidden("The submitter of a request cannot approve it.")
        approvals_needed: int = request.model.policy.get("approvals", 1)
        resolution: Resolution = (
            request.resolution.copy() if request.resolution else {"records": [], "approvals": approvals_needed}
        )
        chosen = sorted(set(resolution["records"] if matches is None else matches))
        if not set(chosen) <= set(resolution["records"]):
            raise Invalid("The request does not match these records.", field="matches")
        if not chosen and not request.records_count:
            raise Invalid("Nothing would be left; reject the request instead.", field="matches")
        if chosen != resolution["records"]:
            requests.clear_approvals(session, request_id)  # they were for other records
            resolution["records"] = chosen
        approvals = requests.add_approval(session, request_id, api_key_id)
        if approvals is None:
            raise Conflict("This API key has approved the request already.")
        if approvals >= resolution["approvals"]:
            resolution["approved"] = True
            request.hold = Hold.RESOLVE if request.subject is not None else None
        request.resolution = resolution
        log_entries.append(session, "request.approved", ref=request.ref, key=str(api_key_id), records=len(chosen))
    services.queue.wake("resolve", request_id)
    services.queue.wake("batch", request.model_id)


def reject_request(services: Services, request_id: UUID, api_key_id: UUID, reason: str) -> None:
    """Reject a request that waits for approval.

    Raises:
        NotFound: The request does not exist.
        Conflict: The request does not wait for approval.
    """
    with services.db.transaction("refuse") as session:
        request = _awaiting_approval(requests.by_id(session, request_id, lock=True))
        request.hold = None
        requests.move(session, [request], RequestStatus.REJECTED, reason=reason)
        requests.add_rejection(session, request_id, api_key_id)
        log_entries.append(session, "requests.rejected", key=str(api_key_id), refs=[request.ref], at_stage="approval")
    services.queue.wake("deliver")


def list_matches(services: Services, request_id: UUID, after: int, limit: int) -> list[MatchOut]:
    """The records that a request would unlearn, with the beginning of each text, for its approvers.

    Raises:
        NotFound: The request does not exist.
        Conflict: The request does not wait for approval, or a corpus has changed: then the service searches again.
    """
    with services.db.reading() as session:
        request = _awaiting_approval(requests.by_id(session, request_id))
        resolution = request.resolution
        ids_by_kind = resolution.get("kinds", {}) if resolution else {}  # texts alone: nobody was searched for
        kinds = {record_id: kind for kind, ids in ids_by_kind.items() for record_id in ids}
        submitted = [text.decode() for _, text in open_records(services.wrapper, request)] if after < 0 else []
        page = [record_id for record_id in (resolution["records"] if resolution else []) if record_id > after][:limit]
        try:
            matches = read_records(SearchableCorpora(services.wrapper, session, request.model_id), page)
        except Unsearchable as error:
            unsearchable: Unsearchable | None = error
        else:
            unsearchable = None
    if unsearchable is not None and not unsearchable.index_is_outdated:
        raise Conflict(f"The matching records cannot be read now ({unsearchable}).")
    if unsearchable is not None:
        _search_again(services, request_id)
        raise Conflict(f"The matching records are no longer there ({unsearchable}); the service searches again.")
    return [
        *(MatchOut(match=None, kind="submitted", text=text[:SNIPPET]) for text in submitted),
        *(MatchOut(match=record.id, kind=kinds[record.id], text=text[:SNIPPET]) for record, text in matches),
    ]


def _search_again(services: Services, request_id: UUID) -> None:
    """Discard the matches and approvals of a request that waits for approval, and resolve it again."""
    with services.db.transaction() as session:
        request = requests.by_id(session, request_id, lock=True)
        if request is not None and request.status == RequestStatus.PENDING and request.hold == Hold.APPROVAL:
            request.resolution, request.hold = None, Hold.RESOLVE
            requests.clear_approvals(session, request_id)
    services.queue.wake("resolve", request_id)


def preview_request(
    services: Services,
    model_name: str,
    subject: Subject,
    regulation: str,
    received_at: datetime | None,
    *,
    texts: bool,
) -> Preview:
    """What a subject matches now.

    Raises:
        Invalid: The model does not exist, or an identity can match nothing.
        Conflict: A corpus is being indexed, or the corpora cannot be searched.
    """
    check_subject(services.wrapper, subject)
    with services.db.reading() as session:
        model = models.by_name(session, model_name)
        if model is None:
            raise Invalid("There is no model of that name.", field="model", code="unknown_model")
        try:
            sources = SearchableCorpora(services.wrapper, session, model.id)
            matches = search(sources, subject)
            snippets = _snippets(sources, matches) if texts else None
        except Unsearchable as error:
            raise Conflict(f"The corpora cannot be searched now: {error}.") from None
        busy = jobs.has_active_job(session, model.id)
    if any(corpus["state"] == "indexing" for corpus in matches.searched):
        raise Conflict("A corpus is being indexed; ask again when that has ended.")
    wait = model.policy.get("max_wait_seconds")
    wait = services.settings.max_wait_seconds if wait is None else wait
    counts = {kind: len(records) for kind, records in matches.kinds.items()}
    return Preview(
        model=model_name,
        counts=counts | {"form_letter": matches.form_letters},
        searched=matches.searched,
        needs_approval=matches.ambiguous or model.policy.get("approvals", 0) > 0,
        due_at=due_at(received_at or datetime.now(UTC), regulation),
        batch="after the job that is running" if busy else f"within {wait:g} s",
        matches=snippets,
    )


def _snippets(sources: SearchableCorpora, matches: Matches) -> list[MatchOut]:
    """The first matches with the beginning of each text."""
    kinds = {record.id: kind for kind, records in matches.kinds.items() for record in records}
    texts = read_records(sources, list(kinds)[:MAX_PREVIEWED])
    return [MatchOut(match=record.id, kind=kinds[record.id], text=text[:SNIPPET]) for record, text in texts]


def _awaiting_approval(request: DeletionRequest | None) -> DeletionRequest:
    """The request, if it exists and waits for approval."""
    if request is None:
        raise NotFound("There is no such request.")
    if request.status != RequestStatus.PENDING or request.hold != Hold.APPROVAL:
        raise Conflict("The request does not wait for approval.")
    return request
