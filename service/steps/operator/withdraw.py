"""withdraw: stop handing out a version. Its certificate, its log entries and its folder stay."""

from datetime import UTC, datetime
from uuid import UUID

from service.bootstrap import Services
from service.db import log_entries, models
from service.domain.errors import Conflict, NotFound


def withdraw_version(services: Services, name: str, number: int, reason: str, api_key_id: UUID) -> None:
    """Withdraw a version.

    Raises:
        NotFound: The model or version does not exist.
        Conflict: The version is withdrawn already, or it is the only one that is handed out.
    """
    with services.db.transaction() as session:
        model = models.by_name(session, name, lock=True)
        version = models.version(session, model, number) if model else None
        if model is None or version is None:
            raise NotFound("There is no such version.")
        if version.withdrawn_at is not None:
            raise Conflict("The version is withdrawn already.")
        version.withdrawn_at, version.withdrawn_reason = datetime.now(UTC), reason
        if models.newest_version(session, model) is None:
            raise Conflict("It is the only version that is handed out; publish another one first.")
        key = str(api_key_id)
        log_entries.append(session, "version.withdrawn", manifest=version.digest, number=number, key=key)
