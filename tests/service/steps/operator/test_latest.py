"""Whatever happens to a model, `latest` remembers no completed request. Random sequences of what can happen."""

from typing import ClassVar

from fastapi.testclient import TestClient
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from service.bootstrap import Services
from service.db import models
from service.steps.path.batch import batch_requests
from service.steps.upkeep.shred import shred_purged
from tests.service.conftest import REQUESTS, only_model, submit
from tests.service.dumps import backup, restore
from tests.service.jobs import fail_what_waits, publish_what_waits

CHOICE = st.integers(0, 10)


class Life(RuleBasedStateMachine):
    """A model's life; `api` and `services` are set by the test."""

    api: ClassVar[TestClient]
    services: ClassVar[Services]

    @initialize()
    def begin(self) -> None:
        """There is no backup yet."""
        self.copied: dict[str, list] | None = None

    @rule(more=st.integers(0, 1), succeeds=st.sampled_from([True, True, False]))
    def run_a_job(self, more: int, succeeds: bool) -> None:
        """People ask; a version is published, or a batch fails its tests."""
        for _ in range(more):
            submit(self.api)
        if self.api.get(REQUESTS, params={"status": "pending"}).json()["items"]:
            (publish_what_waits if succeeds else fail_what_waits)(self.services)

    @rule()
    def cancel_a_job(self) -> None:
        """An operator stops a job."""
        job_id = batch_requests(self.services, only_model(self.services))
        if job_id:
            self.api.post(f"/v1/jobs/{job_id}/cancel")

    @rule(choice=st.integers(0, 1), reopen=st.booleans())
    def withdraw(self, choice: int, reopen: bool) -> None:
        """An operator withdraws the newest version or the one before, and may accept what that costs."""
        items = self.api.get("/v1/models/tiny/versions?limit=200").json()["items"]
        handed_out = [item["version"] for item in items if item["withdrawn_at"] is None]
        number = handed_out[min(choice, len(handed_out) - 1)]
        body = {"reason": "faulty", "reopen": reopen}
        assert self.api.post(f"/v1/models/tiny/versions/{number}/withdraw", json=body).status_code in (200, 409)

    @rule(choice=CHOICE)
    def purge(self, choice: int) -> None:
        """The texts of a request go."""
        items = self.api.get(f"{REQUESTS}?limit=200").json()["items"]
        ended = [item["id"] for item in items if item["status"] in ("completed", "not_memorised", "failed")]
        if ended:
            assert self.api.post(f"{REQUESTS}/{ended[choice % len(ended)]}/purge").status_code == 200
            shred_purged(self.services)

    @rule()
    def back_up(self) -> None:
        """A dump of the database is made."""
        self.copied = backup(self.services)

    @rule()
    def restore(self) -> None:
        """The dump replaces the database."""
        if self.copied is not None:
            restore(self.services, self.copied)

    @invariant()
    def latest_has_forgotten(self) -> None:
        """`latest` is a version that is handed out, and not older than what fulfils any completed request."""
        with self.services.db.reading() as session:
            model = models.by_name(session, "tiny")
            newest = models.newest_version(session, model)
            assert newest is not None
            assert newest.number == model.latest
            assert newest.number >= models.handed_out_from(session, {model.id})[model.id]
        assert self.api.get("/v1/models/tiny/versions/latest").json()["version"] == newest.number


def test_latest_never_remembers_a_completed_request(api, services, model):
    """Submit, complete, fail, withdraw, purge, back up and restore, in any order."""
    machine = type("TheLife", (Life,), {"api": api, "services": services})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=10, stateful_step_count=16, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
