"""The control workers: batching, the sweep, certifying and publishing, as so many tasks at once."""

from collections import deque
from collections.abc import Callable
from uuid import UUID

from bench.simulator.costs import Costs
from bench.simulator.events import Events
from bench.simulator.measures import Meter
from bench.simulator.steps import store_certificate, store_version
from service.bootstrap import Services
from service.domain.states import CONTROL_STAGES
from service.lease import claim_job
from service.steps.path.batch import batch_requests

BATCH_SECONDS = 0.02  # of a task


class Control:
    """Control workers. Tasks wait in line, first come, first served; one whose message has expired is dropped."""

    def __init__(self, events: Events, meter: Meter, costs: Costs, tasks_at_once: int) -> None:
        """Do so many tasks at once. The attributes without a value are to be set before the first message."""
        self._events, self._meter, self._costs = events, meter, costs
        self._free, self._at_once = tasks_at_once, tasks_at_once
        self._line: deque[tuple[Callable[[UUID], float], UUID, float]] = deque()
        self.services: Services
        self.batched: Callable[[UUID, UUID], None]  # called with a model and its new job
        self.published: Callable[[UUID], None]  # called with a job
        self.busy_at_most, self.line_at_most = 0, 0

    def batch(self, model_id: UUID | None, expires: float) -> None:
        """A message: a model may have requests whose window closes."""
        assert model_id is not None
        self._enter(self._batch, model_id, expires)

    def certify(self, job_id: UUID | None, expires: float) -> None:
        """A message: a job may wait to be certified or published."""
        assert job_id is not None
        self._enter(self._certify, job_id, expires)

    def _enter(self, task: Callable[[UUID], float], identifier: UUID, expires: float) -> None:
        """Do a task now, or put it in line."""
        self._line.append((task, identifier, expires))
        self._start()
        self.line_at_most = max(self.line_at_most, len(self._line))

    def _start(self) -> None:
        """Begin what is in line as long as somebody is free."""
        while self._line and self._free:
            task, identifier, expires = self._line.popleft()
            if expires < self._events.clock.seconds:
                continue
            self._free -= 1
            self.busy_at_most = max(self.busy_at_most, self._at_once - self._free)
            self._events.after(task(identifier), self._end)

    def _end(self) -> None:
        """Somebody is free."""
        self._free += 1
        self._start()

    def _batch(self, model_id: UUID) -> float:
        """Batch a model's requests; the seconds that it takes."""
        with self._meter.timed("batch") as operation:
            job_id = batch_requests(self.services, model_id)
            if job_id is None:
                operation.name = "batch, no new job"
        if job_id is not None:
            self.batched(model_id, job_id)
        return BATCH_SECONDS

    def _certify(self, job_id: UUID) -> float:
        """Certify and publish a job; the seconds that it takes."""
        with self._meter.timed("claim to certify"):
            lease = claim_job(self.services, job_id, CONTROL_STAGES)
        if lease is None:
            return 0.0
        assert self._costs.control < self.services.settings.lease_seconds / 4, "it would need heartbeats"

        def certify() -> None:
            with self._meter.timed("certify"):
                store_certificate(self.services, lease)

        def publish() -> None:
            with self._meter.timed("publish"):
                store_version(self.services, lease)
            self.published(job_id)

        self._events.after(self._costs.certify, certify)
        self._events.after(self._costs.control, publish)
        return self._costs.control
