"""The first page: what is due, waits, runs and has failed; and the doctor's findings."""

from datetime import UTC, date, datetime
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from markupsafe import Markup

from service.api.deps import ServicesDep
from service.console import plots
from service.console.api_client import ApiDep
from service.console.pages import HEAVY, PageRoute, page, see
from service.console.sign_in import Visitor
from service.console.words import ALL
from service.doctor import examine
from service.domain.errors import Forbidden

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/console")
async def today(visitor: Visitor, api: ApiDep) -> Response:
    """What needs a look today. Whoever may only submit sees its own requests instead."""
    if not visitor.may(*ALL):
        return see("/console/requests" if visitor.may("submit") else "/console/settings")
    seen = await api.get("/v1/overview")
    running = sum(count for stage, count in seen["jobs"].items() if stage != "queued")
    most_late = seen["backlogs"][0]["model"] if seen["backlogs"] else ""  # it comes first
    deadlines = backlog_plot(await api.get(f"/v1/overview/backlogs/{most_late}")) if most_late else ""
    shown = {"running": running, "plot": _backlog(seen["backlogs"]), "most_late": most_late, "deadlines": deadlines}
    return page("today.html", visitor, seen=seen, **shown)


def _backlog(backlogs: list[dict[str, Any]]) -> Markup:
    """How many requests wait for each model, and how many of them will be late."""
    rows = [(entry["model"], float(entry["requests"]), float(entry["late"])) for entry in backlogs]
    return plots.bars(
        "Requests that wait, and how many of them will be late", rows[:8], name="wait", other="will be late"
    )


def backlog_plot(waiting: dict[str, Any]) -> Markup:
    """The requests of a model that are due by each day, and how many its jobs will have dealt with by then."""
    if not waiting["per_hour"]:
        return Markup()
    today, due = datetime.now(UTC).date(), 0
    by_day = [(0.0, 0.0)]
    for day in waiting["days"]:
        ends_in = float(max(0, (date.fromisoformat(day["due_on"]) - today).days + 1))
        by_day += [(ends_in, float(due)), (ends_in, float(due := due + day["requests"]))]
    last, rate = by_day[-1][0], 24 * waiting["per_hour"]
    ends = min(last, due / rate)
    dealt = [(0.0, 0.0), (ends, ends * rate), (last, ends * rate)]
    shown = [plots.Line("due by then", by_day), plots.Line("dealt with by then", list(dict.fromkeys(dealt)))]
    return plots.lines("Requests due by a day, and dealt with by then", shown, x_name="days from now")


@router.get("/console/health")
async def health(request: Request, visitor: Visitor, services: ServicesDep) -> Response:
    """The doctor's findings, as a page or as a part of the first page."""
    if not visitor.may():
        raise Forbidden("This needs the scope admin.")
    findings = await to_thread.run_sync(examine, services, limiter=HEAVY)
    return page("findings.html" if "hx-request" in request.headers else "health.html", visitor, findings=findings)
