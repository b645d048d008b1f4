"""purge: delete the data key of a request whose dispute window has passed, and everything sealed with it.

Storage's ledger gets the request and its epoch first. From the ledger, a database that is restored from an older backup
is purged again. What PostgreSQL keeps of deleted rows becomes unreadable with the step `shred`, which follows each
purge.
"""

from collections.abc import Collection
from datetime import timedelta
from uuid import UUID

from service.bootstrap import Services
from service.db import jobs, log_entries, requests, restored_requests
from service.domain.errors import Conflict, NotFound
from service.domain.states import TERMINAL_REQUESTS, RequestStatus

CHUNK = 100  # requests


def purge_due(services: Services) -> int:
    """Purge requests whose window has passed; returns how many. Failed ones are kept longer, to be retried."""
    settings, purged = services.settings, 0
    window, failed_window = timedelta(days=settings.custody_days), timedelta(days=settings.failed_custody_days)
    while True:
        with services.db.reading() as session:
            due = requests.purgeable(session, window, failed_window, CHUNK)
        for request_id in due:
            _purge(services, request_id, TERMINAL_REQUESTS)
        purged += len(due)
        if len(due) < CHUNK:
            return purged


def purge_restored(services: Services) -> list[UUID]:
    """Purge again the requests of the ledger that a restored database brought back; returns their ids.

    A request that is open in this database had ended before it was purged: it ends now, without a verdict.
    """
    with services.db.reading() as session:
        unpurged = requests.unpurged(session, services.storage.purged())
    for request_id in unpurged:
        _purge(services, request_id, frozenset(RequestStatus))
    return unpurged


def purge_request(services: Services, request_id: UUID, api_key_id: UUID) -> None:
    """Purge a request that has ended, before its window has passed, by an operator's command.

    Raises:
        NotFound: The request does not exist.
        Conflict: The request has not ended.
    """
    with services.db.reading() as session:
        if requests.by_id(session, request_id) is None:
            raise NotFound("There is no such request.")
    if not _purge(services, request_id, TERMINAL_REQUESTS, key=str(api_key_id)):
        raise Conflict("Only a request that has ended can be purged.")


def _purge(services: Services, request_id: UUID, among: Collection[RequestStatus], **who: str) -> bool:
    """Purge a request if its status is among these; false if it is not. The log gets who asked for it, if somebody did.

    The ledger gets the request while its row is locked: nobody can open the request again in between.
    """
    with services.db.transaction() as session:
        request = requests.by_id(session, request_id, lock=True)
        if request is None or request.status not in among:
            return False
        services.storage.add_purged(request_id, request.key_epoch)
        if ref := requests.purge(session, request_id):
            restored_requests.end_as_failed(session, request)
            jobs.redact_means(session, request)
            log_entries.append(session, "request.purged", ref=ref, **who)
        return True
