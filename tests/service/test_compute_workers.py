"""Compute workers say what their slots offer, and a job that is too large for one is left to a larger one."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from service.db import claims, compute_workers
from service.db.compute_workers import ComputeWorker
from service.db.tables import Job
from service.doctor import examine
from service.domain.slot import Slot
from service.domain.states import COMPUTE_STAGES
from service.lease import fail_attempt, hold_job
from service.local.process import wait_until
from service.steps.upkeep.sweep import wake_lost_work
from worker import slots, tasks
from worker.presence import Presence
from worker.slots import Slots, dealt

GB = 10**9
FOUR = {"0": 80 * GB, "1": 80 * GB, "2": 40 * GB, "3": 40 * GB}


def seen(services) -> list[tuple[str, int, bool, int | None]]:
    """The workers that live."""
    with services.db.reading() as session:
        living = compute_workers.living(session, services.settings.sweep_seconds)
    return [(worker.name, worker.slots, worker.on_cuda, worker.memory) for worker in living]


def test_a_worker_lives_while_it_says_so(api, services, as_process):
    """By its own login, and with all slots busy; not once it has ended, or was not seen for four looks."""
    presence, two = Presence(), Slots()
    two.all = dealt(FOUR, 1, 2)
    presence.begin(as_process("compute"), two)
    assert wait_until(lambda: bool(seen(services)), 10)
    ((_, *offered),) = seen(services)
    assert offered == [2, True, 40 * GB]
    assert api.get("/v1/overview").json()["slots"] == 2
    assert "unlearnd_compute_slots 2.0" in api.get("/metrics").text
    presence.end()
    assert seen(services) == []
    with services.db.transaction() as session:
        compute_workers.note(session, "gone/1", [Slot()])
        past = datetime.now(UTC) - timedelta(seconds=5 * services.settings.sweep_seconds)
        session.execute(update(ComputeWorker).values(seen_at=past))
    assert seen(services) == []


def test_a_job_that_is_too_large_for_a_slot_is_left_to_a_larger_one(services, job):
    """It costs no attempt. Where no larger one lives, it fails at once, as it always did."""
    _, job_id = job
    with services.db.transaction() as session:
        compute_workers.note(session, "large/1", [Slot((), 80 * GB, on_cuda=True)])
    small, large = Slot((), 24 * GB, on_cuda=True), Slot((), 80 * GB, on_cuda=True)
    with hold_job(services, None, COMPUTE_STAGES, small) as lease:
        fail_attempt(services, lease, "model_too_large", permanent=True)
    with services.db.transaction() as session:
        left = session.get(Job, job_id)
        assert (left.stage, left.attempts, left.outgrew, left.owner) == ("queued", 0, 24 * GB, None)
        assert claims.most_urgent(session, COMPUTE_STAGES, small.memory) is None
        assert not claims.is_any(session, COMPUTE_STAGES, small.memory)
        assert claims.is_any(session, COMPUTE_STAGES, large.memory)
    assert not tasks.work_under_lease(services, None, COMPUTE_STAGES, pytest.fail, small)
    assert "workers" not in {finding.check for finding in examine(services)}
    with services.db.transaction() as session:
        compute_workers.forget(session, "large/1")
    (finding,) = [finding for finding in examine(services) if finding.check == "workers"]
    assert "24 GB" in finding.problem
    with services.db.transaction() as session:
        compute_workers.note(session, "cpu/1", [Slot((), 999 * GB)])  # of another kind
        session.execute(update(Job).values(progress_at=datetime.now(UTC) - timedelta(hours=1)))
    wake_lost_work(services)  # nobody would end it: any worker may try again
    with hold_job(services, None, COMPUTE_STAGES, large) as lease:
        fail_attempt(services, lease, "model_too_large", permanent=True)
    with services.db.reading() as session:
        assert session.get(Job, job_id).reason == "model_too_large"


def test_a_job_runs_in_a_slot(services, job, monkeypatch):
    """Its lease has the slot, so that its child has the slot's devices; two threads never have the same one."""
    only, ran = Slots(), []
    monkeypatch.setattr(tasks, "slots", only)
    monkeypatch.setattr(slots, "cuda_devices", lambda _: {"7": 80 * GB, "8": 80 * GB})
    only.deal(2)

    def run(_, lease) -> None:
        ran.append(lease.slot)
        with only.free() as second, only.free() as third:
            assert (second.devices, third) == (("8",), None)
        fail_attempt(services, lease, "criterion_missed", permanent=True)

    monkeypatch.setattr(tasks, "run_job", run)
    tasks.compute(services)
    assert ran == [Slot(("7",), 80 * GB, on_cuda=True)]
