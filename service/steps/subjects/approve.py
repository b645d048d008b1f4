"""approve: people look at the records that a request would unlearn, and approve or reject it."""

from collections.abc import Sequence
from uuid import UUID

from service.bootstrap import Services
from service.db import log_entries, requests
from service.db.tables import DeletionRequest
from service.domain.disclosure import count_range
from service.domain.errors import Conflict, Forbidden, Invalid, NotFound
from service.domain.states import Hold, RequestStatus
from service.domain.subject import Resolution, Subject
from service.privacy.records import open_records, request_subject
from service.schemas.subjects import MatchOut
from service.subjects.errors import Unsearchable
from service.subjects.marking import excerpt
from service.subjects.search import SearchableCorpora, read_records


def approve_request(
    services: Services, request_id: UUID, api_key_id: UUID, matches: Sequence[int] | None, reason: str | None = None
) -> None:
    """Approve a request that waits for approval, with all of its matches or some of them; `reason` is a code.

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
        approvals = requests.add_approval(session, request_id, api_key_id, reason)
        if approvals is None:
            raise Conflict("This API key has approved the request already.")
        if approvals >= resolution["approvals"]:
            resolution["approved"] = True
            request.hold = Hold.RESOLVE if request.subject is not None else None
        request.resolution = resolution
        said = {"key": str(api_key_id), "records": count_range(len(chosen)), **log_entries.optional_reason(reason)}
        log_entries.append(session, "request.approved", ref=request.ref, **said)
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
    roots = services.corpus_roots
    try:
        sources = SearchableCorpora(services.wrapper, roots, services.db, request.model_id, max_texts=limit)
        matches = read_records(sources, page)
    except Unsearchable as error:
        if not error.index_is_outdated:
            raise Conflict(f"The matching records cannot be read now ({error}).") from None
        _search_again(services, request_id)
        raise Conflict(f"The matching records are no longer there ({error}); the service searches again.") from None
    subject = request_subject(services.wrapper, request) if request.subject is not None else Subject()

    def out(match: int | None, kind: str, text: str) -> MatchOut:
        return MatchOut(match=match, kind=kind, **excerpt(text, subject))

    return [
        *(out(None, "submitted", text) for text in submitted),
        *(out(record.id, kinds[record.id], text) for record, text in matches),
    ]


def _search_again(services: Services, request_id: UUID) -> None:
    """Discard the matches and approvals of a request that waits for approval, and resolve it again."""
    with services.db.transaction() as session:
        request = requests.by_id(session, request_id, lock=True)
        if request is not None and request.status == RequestStatus.PENDING and request.hold == Hold.APPROVAL:
            request.resolution, request.hold = None, Hold.RESOLVE
            requests.clear_approvals(session, request_id)
    services.queue.wake("resolve", request_id)


def _awaiting_approval(request: DeletionRequest | None) -> DeletionRequest:
    """The request, if it exists and waits for approval."""
    if request is None:
        raise NotFound("There is no such request.")
    if request.status != RequestStatus.PENDING or request.hold != Hold.APPROVAL:
        raise Conflict("The request does not wait for approval.")
    return request
