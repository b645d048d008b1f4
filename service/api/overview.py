"""`/v1/overview`: what is due, waits, runs and has failed, in one answer."""

from datetime import UTC, datetime, timedelta

from fastapi import APIRouter

from service.api.deps import MetricsReader, ServicesDep
from service.api.guard import GuardedRoute
from service.api.requests import to_request_out
from service.db import compute_workers, due_requests, jobs, models, request_list, requests, tallies
from service.db.forecast import Backlog, backlogs
from service.db.tables import DeletionRequest
from service.schemas.overview import BacklogDetail, BacklogOut, Overview
from service.schemas.requests import RequestOut

router = APIRouter(prefix="/v1/overview", tags=["health"], route_class=GuardedRoute)
SHOWN, MAX_MODELS = 10, 50


@router.get("")
def overview(services: ServicesDep, caller: MetricsReader) -> Overview:
    """What an operator looks at first. Keys with `read` or `approve` see requests, those with `audit` alone counts."""
    soon = datetime.now(UTC) + timedelta(days=services.settings.alert_days)
    with services.db.reading() as session:
        lists = (request_list.due_first, request_list.awaiting_approval, request_list.failed)
        due, decisions, failures = (shown(session, SHOWN) for shown in lists)
        counts = {
            "requests": dict(tallies.by_status(session)),
            "jobs": jobs.counts(session, ended=False),
            "overdue": due_requests.overdue(session)[0],
            "due_soon": request_list.due_soon_count(session, soon),
            "awaiting_approval": requests.awaiting_approval_count(session),
            "failed": due_requests.failed(session),
            "next_due": due_requests.next_due(session),
            "slots": compute_workers.slots(session, services.settings.sweep_seconds),
            "backlogs": [
                BacklogOut.model_validate(backlog, from_attributes=True) for backlog in backlogs(session, MAX_MODELS)
            ],
        }

    def answers(rows: list[DeletionRequest]) -> list[RequestOut]:
        if not {"read", "approve", "admin"} & set(caller.scopes):
            return []  # an auditor sees how many there are, and no case number
        return [to_request_out(services, row, row.model.name, caller) for row in rows]

    return Overview(**counts, due=answers(due), decisions=answers(decisions), failures=answers(failures))


@router.get("/backlogs/{model}")
def backlog(model: str, services: ServicesDep, _: MetricsReader) -> BacklogDetail:
    """What waits for a model, by the day of its deadline."""
    with services.db.reading() as session:
        waiting = backlogs(session, 1, models.existing(session, model).id)
    (one,) = waiting or [Backlog(model, 0, None, None, 0, [])]
    return BacklogDetail.model_validate(one, from_attributes=True)
