"""The jobs of a run: which there are, which can be claimed, and what a worker has to do on one."""

from collections import defaultdict
from collections.abc import Sequence
from uuid import UUID

from bench.simulator.costs import Costs, luck
from bench.simulator.measures import Watch
from bench.simulator.steps import Step, claimed, compute_steps
from service.bootstrap import Services
from service.db import jobs
from service.domain.states import COMPUTE_STAGES
from service.lease import Lease


class Work:
    """Jobs by their ids.

    Attributes:
        active: The models with a job that a worker has claimed and that has not ended.
        fulfilled: Model -> how many of its requests earlier versions have fulfilled.
        sizes: Job -> how many requests it holds.
        costs: Job -> seconds of a worker who is not killed.
    """

    def __init__(self, costs: Costs, models: Sequence[UUID], watch: Watch, *, earlier: int, seed: int) -> None:
        """Begin with no job, and so many earlier requests of each model."""
        self._costs, self._watch, self._seed = costs, watch, seed
        self._numbers = {model_id: number for number, model_id in enumerate(models)}
        self._model: dict[UUID, UUID] = {}
        self._claimable: set[UUID] = set()
        self.active: set[UUID] = set()
        self.fulfilled: dict[UUID, int] = defaultdict(lambda: earlier)
        self.sizes: dict[UUID, int] = {}
        self.costs: dict[UUID, float] = {}

    def batched(self, model_id: UUID, job_id: UUID) -> None:
        """A model has a new job."""
        self._model[job_id] = model_id
        self.add_claimable(job_id)

    def add_claimable(self, job_id: UUID) -> None:
        """A job can be claimed now."""
        self._claimable.add(job_id)
        self._count()

    def claimed(self, services: Services, lease: Lease) -> list[Step]:
        """What the worker that has claimed a job writes on it."""
        self._claimable.discard(lease.job_id)
        self._count()
        job, requests = claimed(services, lease.job_id)
        self.sizes[job.id] = requests
        self.active.add(job.model_id)
        seconds = self._costs.compute(requests, self.fulfilled[job.model_id])
        seconds *= luck(self._seed, self._numbers[job.model_id], job.parent_version.number + 1)
        self.costs[job.id] = seconds
        return compute_steps(services, lease, job, requests, seconds, self._costs)

    def published(self, job_id: UUID) -> UUID:
        """A job has become a version; returns its model."""
        model_id, requests = self._model[job_id], self.sizes[job_id]
        self.active.discard(model_id)
        self.fulfilled[model_id] += requests
        self._watch.change(waiting=-requests)
        return model_id

    def is_lost(self, services: Services, lease: Lease) -> bool:
        """Whether a job is still where a dead worker has left it."""
        with services.db.reading() as session:
            job = jobs.by_id(session, lease.job_id)
        return job is not None and job.fence == lease.fence and job.stage in COMPUTE_STAGES

    def _count(self) -> None:
        """Let the watch know how many jobs can be claimed."""
        self._watch.change(claimable=len(self._claimable) - self._watch.claimable)
