"""Numbers about a period, for a regulator: requests that were received in it, and versions that came of them."""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, Date, cast, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from service.db.history_tables import Download
from service.db.tables import DeletionRequest, Job, Version
from service.domain.states import TERMINAL_REQUESTS, RequestStatus, Stage

OPEN = "open"


class Period(NamedTuple):
    """What happened to the requests of a period.

    Attributes:
        by_status: How many have each status; what has not ended is `open`.
        by_law: How many were made under each law.
        extended: How many had their deadline extended.
        in_time: How many ended on the day of their deadline or before.
        late: How many ended after it.
        overdue: How many are past it, and neither ended nor resolved; failed ones are among them.
        median_days: From receipt to end; None if none has ended.
        failures: How many failed for each reason.
        versions: How many versions were published in the period.
        methods: How many jobs that published in the period used each loss.
        downloads: By how many API keys files of versions were downloaded first in the period.
    """

    by_status: dict[str, int]
    by_law: dict[str, int]
    extended: int
    in_time: int
    late: int
    overdue: int
    median_days: float | None
    failures: dict[str, int]
    versions: int
    methods: dict[str, int]
    downloads: int


def report(session: Session, begins: datetime, ends: datetime) -> Period:
    """The numbers of a period, from `begins` until before `ends`."""
    request = DeletionRequest
    received = (request.received_at >= begins) & (request.received_at < ends)
    settled = request.status.in_(TERMINAL_REQUESTS - {RequestStatus.FAILED}) | request.resolved_at.is_not(None)
    ended_at = func.coalesce(request.resolved_at, request.finished_at)
    late_at = func.coalesce(ended_at, func.now())
    is_late = cast(late_at, Date) > cast(request.due_at, Date)
    overdue = ~settled & (func.now() > request.due_at)

    def grouped(
        column: InstrumentedAttribute[str] | InstrumentedAttribute[str | None], *conditions: ColumnElement[bool]
    ) -> dict[str, int]:
        query = select(column, func.count()).where(received, *conditions).group_by(column).order_by(column)
        return {str(name): count for name, count in session.execute(query)}

    def count(*conditions: ColumnElement[bool]) -> int:
        return session.scalar(select(func.count()).select_from(request).where(received, *conditions)) or 0

    days = func.extract("epoch", ended_at - request.received_at) / 86_400
    median = session.scalar(select(func.percentile_cont(0.5).within_group(days)).where(received, settled))
    by_status = grouped(request.status)
    unfinished = set(by_status) - {str(status) for status in TERMINAL_REQUESTS}
    published = (Version.created_at >= begins) & (Version.created_at < ends) & (Version.number > 0)
    loss = func.coalesce(Job.policy["loss"].astext, "ihl")
    jobs = select(loss, func.count()).join(Version, Version.job_id == Job.id).where(published, Job.stage == Stage.DONE)
    still_open = {OPEN: sum(by_status.pop(status) for status in unfinished)} if unfinished else {}
    used = select(func.count(Download.api_key_id.distinct()))
    downloads = used.where(Download.first_at >= begins, Download.first_at < ends)
    return Period(
        by_status=by_status | still_open,
        by_law=grouped(request.regulation),
        extended=count(request.extension_reason.is_not(None)),
        in_time=count(settled, ~is_late),
        late=count(settled, is_late),
        overdue=count(overdue),
        median_days=None if median is None else float(median),
        failures=grouped(request.reason, request.status == RequestStatus.FAILED),
        versions=session.scalar(select(func.count()).select_from(Version).where(published)) or 0,
        methods={str(name): n for name, n in session.execute(jobs.group_by(loss).order_by(loss))},
        downloads=session.scalar(downloads) or 0,
    )
