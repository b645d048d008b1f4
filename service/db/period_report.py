"""Numbers about a period, for a regulator: requests that were received in it, and versions that came of them."""

from collections import Counter
from datetime import date, datetime
from typing import Any, NamedTuple, TypedDict

from sqlalchemy import ColumnElement, Date, case, cast, func, select, text
from sqlalchemy.orm import InstrumentedAttribute, Session

from service.audit.certificate import method_name
from service.db.history_tables import Download
from service.db.tables import DeletionRequest, Job, Version
from service.domain.states import TERMINAL_REQUESTS, RequestStatus

OPEN, NOTHING_FOUND, RESOLVED = "open", "nothing_found", "resolved"


class Period(NamedTuple):
    """What happened to the requests of a period.

    Attributes:
        by_status: How many have each status; what has not ended is `open`, what ended because nothing was found is
            `nothing_found`, and what failed and was then dealt with in another way is `resolved`.
        by_law: How many were made under each law.
        extended: How many had their deadline extended.
        in_time: How many ended on the day of their deadline or before.
        late: How many ended after it.
        overdue: How many are past it, and neither ended nor resolved; failed ones are among them.
        median_days: From receipt to end; None if none has ended.
        failures: How many failed for each reason.
        versions: How many versions were published in the period.
        methods: How many of them were made by each method.
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
    """The numbers of a period, from `begins` until before `ends`. Deadlines are days, UTC.

    The requests are counted in one statement, so that the numbers agree with each other.
    """
    request = DeletionRequest
    settled = request.status.in_(TERMINAL_REQUESTS - {RequestStatus.FAILED}) | request.resolved_at.is_not(None)
    ended_at = func.coalesce(request.resolved_at, request.finished_at)
    is_late = _day(func.coalesce(ended_at, func.now())) > _day(request.due_at)
    timing = case((settled & ~is_late, "in_time"), (settled, "late"), (is_late, "overdue"), else_="within")
    kinds: list[Any] = [
        request.status,
        request.regulation,
        request.reason,
        request.extension_reason.is_not(None),
        timing,
    ]
    received = (request.received_at >= begins) & (request.received_at < ends)
    by_status, by_law, failures, timings = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    extended = 0
    places = (text(str(place)) for place in range(1, len(kinds) + 1))
    query = select(*kinds, func.count()).where(received).group_by(*places)
    for status, law, reason, has_more_time, when, count in map(tuple, session.execute(query)):
        is_owed = when in ("overdue", "within")
        by_status[RESOLVED if status == RequestStatus.FAILED and not is_owed else _outcome(status, reason)] += count
        by_law[law] += count
        failures[reason] += count if status == RequestStatus.FAILED else 0
        timings[when] += count
        extended += count if has_more_time else 0
    days = func.extract("epoch", ended_at - request.received_at) / 86_400
    median = session.scalar(select(func.percentile_cont(0.5).within_group(days)).where(received, settled))
    return Period(
        by_status=dict(sorted(by_status.items())),
        by_law=dict(sorted(by_law.items())),
        extended=extended,
        in_time=timings["in_time"],
        late=timings["late"],
        overdue=timings["overdue"],
        median_days=None if median is None else float(median),
        failures=dict(sorted((+failures).items())),
        **_published(session, begins, ends),
    )


def _day(moment: ColumnElement[datetime] | InstrumentedAttribute[datetime]) -> ColumnElement[date]:
    """The day of a moment, UTC."""
    return cast(func.timezone("UTC", moment), Date)


def _outcome(status: str, reason: str | None) -> str:
    """What became of a request."""
    if reason == NOTHING_FOUND:
        return NOTHING_FOUND
    return status if status in TERMINAL_REQUESTS else OPEN


class _Published(TypedDict):
    versions: int
    methods: dict[str, int]
    downloads: int


def _published(session: Session, begins: datetime, ends: datetime) -> _Published:
    """The versions of a period, how they were made, and who took them."""
    published = (Version.created_at >= begins) & (Version.created_at < ends) & (Version.number > 0)
    policies = select(Job.policy).join(Version, Version.job_id == Job.id).where(published)
    methods = Counter(method_name(policy) for policy in session.scalars(policies))
    used = select(func.count(Download.api_key_id.distinct()))
    downloads = session.scalar(used.where(Download.first_at >= begins, Download.first_at < ends)) or 0
    return {"versions": methods.total(), "methods": dict(sorted(methods.items())), "downloads": downloads}
