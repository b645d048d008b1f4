"""purge: destroy the data key of a request whose dispute window has passed, and everything sealed with it.

Storage's ledger is told first: a database that is restored from an older backup is purged again from it.
"""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from service.bootstrap import Services
from service.db import jobs, log_entries, requests

AT_ONCE = 100


def purge_due(services: Services) -> int:
    """Purge what is due; returns how many. A request that failed is kept: it may have to be tried again."""
    window, done = timedelta(days=services.settings.custody_days), 0
    while True:
        with services.db.reading() as session:
            due = requests.purgeable(session, window, AT_ONCE)
        _destroy(services, due)
        done += len(due)
        if len(due) < AT_ONCE:
            return done


def purge_restored(services: Services) -> list[UUID]:
    """Purge what the ledger says was purged before; none unless the database was restored from an older backup.

    One that this database takes for unfinished had ended, or it would not have been purged: it ends without a verdict.
    """
    with services.db.reading() as session:
        back = requests.unpurged(session, services.storage.purged())
    _destroy(services, back)
    return back


def _destroy(services: Services, ids: Sequence[UUID]) -> None:
    for request_id in ids:
        services.storage.add_purged(request_id)
        with services.db.transaction() as session:
            if ref := requests.purge(session, request_id):
                request = requests.by_id(session, request_id, lock=True)
                assert request is not None
                requests.fail_restored(session, request)
                if request.job_id is not None:
                    jobs.redact_means(session, request.job_id)
                log_entries.append(session, "request.purged", ref=ref)
