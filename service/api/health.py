"""`/livez`, `/readyz`, `/metrics`: for orchestrators and Prometheus. They show no personal data."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from service.api.deps import ServicesDep, WithScopeUnlessLocal
from service.api.guard import GuardedRoute, UncountedRoute
from service.bootstrap import Services
from service.db import compute_workers, due_requests, jobs, log_home, models, outbox, requests, tallies
from service.db.api_keys import Caller
from service.db.forecast import Backlog, backlogs
from service.db.tables import Version
from service.domain.disclosure import disclosed
from service.observability import traffic
from service.schemas.report import write_report

router = APIRouter(tags=["health"], route_class=GuardedRoute)
liveness_router = APIRouter(tags=["health"], route_class=UncountedRoute)
MAX_MODELS = 200  # models with metrics of their own
ScrapingReader = Annotated[Caller | None, Depends(WithScopeUnlessLocal("read"))]


@liveness_router.get("/livez")
async def livez() -> dict[str, str]:
    """Says that the process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """Says whether a deletion request would be accepted: whether the database answers soon, and takes writes.

    The broker does not matter: requests are accepted without it.
    """
    state = await request.app.state.readiness.state()
    is_ready = state == "ok"
    return JSONResponse({"status": "ok" if is_ready else "unavailable", "database": state}, 200 if is_ready else 503)


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(services: ServicesDep, _: ScrapingReader) -> Response:
    """Metrics from the database, and of HTTP requests, in Prometheus' text format.

    On this machine alone they need no key while the service has no public URL; see `UNLEARND_METRICS_PORT`.
    """
    return Response(generate_latest(metrics_registry(services)), media_type=CONTENT_TYPE_LATEST)


def metrics_registry(services: Services) -> CollectorRegistry:
    """The metrics, for an endpoint or a port of their own."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector(services))
    traffic.register(registry)
    return registry


class Collector:
    """Reads the metrics from the database at each scrape, because several API processes may run."""

    def __init__(self, services: Services) -> None:
        """Read from the database of these services."""
        self._services = services

    def collect(self) -> Iterator[Metric]:
        """Requests by status, jobs by stage, deadlines, backlogs, and the newest version of each model."""
        with self._services.db.reading() as session:
            by_status, by_stage = tallies.by_status(session), jobs.counts(session)
            overdue, next_due = due_requests.overdue(session)[0], due_requests.next_due(session)
            failed = due_requests.failed(session)
            undelivered, oldest = outbox.undelivered_count(session), jobs.oldest_queued_seconds(session)
            awaiting_approval, latest = (
                requests.awaiting_approval_count(session),
                models.latest_versions(session, MAX_MODELS),
            )
            waiting = backlogs(session, MAX_MODELS)
            slots = compute_workers.slots(session, self._services.settings.sweep_seconds)
            settled, move = log_home.is_settled(session), log_home.unseen_move(session)
        yield from _backlog_metrics(waiting)
        yield GaugeMetricFamily("unlearnd_compute_slots", "Jobs that compute workers seen lately run at once", slots)
        yield _counted("unlearnd_requests", "Deletion requests by status", "status", by_status)
        yield _counted("unlearnd_jobs", "Jobs by stage", "stage", by_stage.items())
        yield GaugeMetricFamily("unlearnd_requests_overdue", "Open and failed requests past their deadline", overdue)
        yield GaugeMetricFamily("unlearnd_requests_failed_unresolved", "Failed requests nobody has resolved", failed)
        yield GaugeMetricFamily(
            "unlearnd_requests_awaiting_approval", "Requests that wait for approval", awaiting_approval
        )
        if next_due is not None:
            seconds_left = (next_due - datetime.now(UTC)).total_seconds()
            yield GaugeMetricFamily(
                "unlearnd_next_deadline_seconds", "Until the earliest deadline; below 0: past", seconds_left
            )
        damaged = sum(bool(files) for _, files in self._services.storage.scrubbed().values())
        yield GaugeMetricFamily(
            "unlearnd_releases_damaged", "Releases with a file that was changed in storage", damaged
        )
        lost = len(move.lost) if move else 0
        yield GaugeMetricFamily("unlearnd_log_settled", "1: the log goes on in this database", int(settled))
        yield GaugeMetricFamily("unlearnd_requests_lost", "Accepted, then lost by a failover or restoration", lost)
        yield GaugeMetricFamily("unlearnd_callbacks_waiting", "Callbacks not delivered yet", undelivered)
        yield GaugeMetricFamily("unlearnd_oldest_queued_job_seconds", "Age of the oldest queued job", oldest)
        yield from _version_metrics(latest)


def _counted(name: str, text: str, label: str, counts: Iterable[tuple[str, int]]) -> Metric:
    """A gauge with a value for each label."""
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, count in counts:
        family.add_metric([value], count)
    return family


def _backlog_metrics(waiting: list[Backlog]) -> Iterator[Metric]:
    """What waits for each model, until when, and how much will be late, if its jobs go on as the last ones did."""
    requests = GaugeMetricFamily("unlearnd_backlog_requests", "Requests that wait for jobs", labels=["model"])
    seconds = GaugeMetricFamily("unlearnd_backlog_seconds", "Until the last of them ends", labels=["model"])
    late = GaugeMetricFamily("unlearnd_backlog_late", "How many of them will be late", labels=["model"])
    for backlog in waiting:
        requests.add_metric([backlog.model], backlog.requests)
        if backlog.ends_at is not None:
            seconds.add_metric([backlog.model], (backlog.ends_at - datetime.now(UTC)).total_seconds())
            late.add_metric([backlog.model], backlog.late)
    yield from (requests, seconds, late)


def _version_metrics(latest: list[tuple[str, Version]]) -> Iterator[Metric]:
    """EL, MA and perplexity of each model's newest version, as a caller without the scope `audit` may see them."""
    number = GaugeMetricFamily("unlearnd_model_version", "Number of the newest version", labels=["model"])
    names = ("model", "measure", "value")
    tested = GaugeMetricFamily("unlearnd_version_test", "EL and MA of the unlearned texts", labels=names)
    ratio = GaugeMetricFamily(
        "unlearnd_version_perplexity_ratio", "Held-out perplexity, relative to before", labels=["model"]
    )
    total = GaugeMetricFamily(
        "unlearnd_version_total_perplexity_ratio", "Held-out perplexity, relative to version 0", labels=["model"]
    )
    for model, version in latest:
        number.add_metric([model], version.number)
        metrics = version.metrics
        if metrics is None:
            continue  # the registered base
        ratio.add_metric([model], metrics.utility.heldout_ratio)
        if metrics.utility.total_ratio is not None:
            total.add_metric([model], metrics.utility.total_ratio)
        shown = disclosed(write_report(metrics), metrics.contributors)
        for when, means in (("limit", shown["limits"]), ("before", shown["before"]), ("after", shown["after"])):
            for measure, value in means.items() if isinstance(means, dict) else ():
                if value is not None:
                    tested.add_metric([model, measure, when], value)
    yield from (number, tested, ratio, total)
