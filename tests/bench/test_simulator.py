"""The simulator: the service's own scheduling in virtual time, small, and seen to fail where it should."""

from dataclasses import replace

import pytest
from sqlalchemy import func, select

from bench.simulator.arrivals import Arrival, Demand
from bench.simulator.costs import Costs, luck
from bench.simulator.fleet import FleetOptions
from bench.simulator.perfect import Plan, best_ends, missed
from bench.simulator.results import summary
from bench.simulator.run import Options, Result, simulate
from service.db import claims
from service.db.jobs import claimable
from service.db.tables import DeletionRequest, Job

HOUR = 3600
COSTS = Costs(fixed=600, per_record=60, earlier_fixed=0, per_earlier=0, epochs=2, certify=1, publish=1, source="a test")
KILLED = Options(
    Demand(requests=40, models=4, skew=0, seconds=HOUR, due=(HOUR, 9 * HOUR), seed=3),
    FleetOptions(workers=3, scaling="keda", deaths_per_hour=2, polling_seconds=60),
    COSTS,
    batch=8,
    max_wait_seconds=300,
    sweep_seconds=120,
)
# One worker, and four models with a full batch each at the start. Each model's batch is due later than the one before.
QUEUED = Options(
    Demand(requests=16, models=4, skew=0, seconds=1, due=(0, 0), seed=0), FleetOptions(workers=1), COSTS, batch=4
)


def ended_at(result: Result) -> list[float]:
    """The seconds at which the requests ended; all of them have."""
    return [end.at for end in result.ends]


@pytest.fixture(scope="module")
def killed() -> Result:
    """A run whose workers are killed all the time."""
    return simulate(KILLED)


def test_kills_lose_nothing_and_fail_nothing(killed):
    """Every request is fulfilled once, no job fails, and what killed workers held was taken up by others."""
    assert killed.fleet.deaths_with_job > 3
    assert {end.status for end in killed.ends} == {"completed"}
    assert len(killed.ends) == sum(killed.sizes.values()) == KILLED.demand.requests
    assert killed.stages == {"done": len(killed.sizes)}
    assert len(
        {(arrival.model, end.version) for arrival, end in zip(killed.arrivals, killed.ends, strict=True)}
    ) == len(killed.sizes)


def test_workers_come_and_go_with_the_work(killed):
    """From none to the most that are allowed, and back to none."""
    assert killed.watch.alive_at_most == KILLED.fleet.workers
    assert killed.watch.alive == killed.watch.busy == killed.watch.waiting == killed.watch.claimable == 0
    assert 0 < killed.watch.seconds["alive"] < KILLED.fleet.workers * killed.seconds


def test_time_is_virtual(killed):
    """Hours pass, and the database and this process see the same hours."""
    assert killed.seconds > HOUR
    least = COSTS.compute(1, 0) * 0.8
    for arrival, end in zip(killed.arrivals, killed.ends, strict=True):
        assert arrival.at + least < end.at <= killed.seconds


def test_what_is_left_out_changes_nothing(killed):
    """The same seed, with each heartbeat at its time and one statement for most jobs' steps: the same ends, and deaths.

    (Each phase is rounded to a millisecond, and a short job has fewer of them.)
    """
    fleet = replace(KILLED.fleet, every_beat=True)
    other = simulate(replace(KILLED, fleet=fleet, full_every=4))
    assert ended_at(other) == pytest.approx(ended_at(killed), abs=0.1)
    assert (other.fleet.deaths, other.fleet.deaths_with_job) == (killed.fleet.deaths, killed.fleet.deaths_with_job)
    assert other.meter.done["short publish"] > other.meter.done["publish"] > 0
    assert other.meter.counted["epoch"] + other.meter.done["epoch"] == killed.meter.done["epoch"]
    assert other.meter.done["heartbeat"] == pytest.approx(
        killed.meter.done["heartbeat"] + killed.meter.counted["heartbeat"], rel=0.02
    )


def with_deadlines(monkeypatch) -> list[float]:
    """Let the models be due in the reverse of their order; returns when each model's batch is due."""
    job = COSTS.compute(4, 0) * 1.2 + 120
    due = [(4 - model) * job for model in range(4)]
    arrivals = [Arrival(number % 4, 0.0, round(due[number % 4], 3)) for number in range(16)]
    monkeypatch.setattr(Demand, "arrivals", lambda _: arrivals)
    return due


def test_deadlines_that_can_be_kept_are_kept(monkeypatch):
    """The model that is due first is dealt with first, whichever was batched first."""
    with_deadlines(monkeypatch)
    result = simulate(QUEUED)
    assert [end.status for end in result.ends] == ["completed"] * 16
    assert not missed(result.arrivals, ended_at(result))
    assert summary(result)["missed that the perfect scheduler keeps"] == "0"


def test_another_order_is_seen(monkeypatch):
    """Were the claim to forget the deadlines, the simulator would show what a perfect scheduler keeps."""

    def first_come(session, stages):
        return session.scalar(select(Job.id).where(*claimable(stages)).order_by(latest()).limit(1))

    def latest():
        due = select(func.min(DeletionRequest.due_at)).where(DeletionRequest.job_id == Job.id)
        return due.scalar_subquery().desc()

    with_deadlines(monkeypatch)
    monkeypatch.setattr(claims, "most_urgent", first_come)
    result = simulate(QUEUED)
    assert int(summary(result)["missed that the perfect scheduler keeps"]) > 0


def test_the_perfect_scheduler_by_hand():
    """One worker: the later arrival with the earlier deadline goes first as soon as somebody is free."""
    arrivals = [Arrival(0, 0.0, 5000.0), Arrival(1, 1.0, 9000.0), Arrival(2, 2.0, 1500.0)]
    costs = replace(COSTS, per_record=0)
    lucky = [600 * luck(7, model, 1) for model in range(3)]
    ends = Plan(arrivals, 1, 1, costs, 0.0, earlier=0, seed=7).ends()
    assert ends == pytest.approx([lucky[0] + 2, sum(lucky) + 2, lucky[0] + lucky[2] + 2])
    assert missed(arrivals, ends) == set()
    assert best_ends(arrivals, 1, 1, costs, earlier=0, seed=7) == ends


def test_the_perfect_scheduler_keeps_the_rules():
    """A model has one job at a time, and a job starts once its batch is full or has waited."""
    arrivals = [Arrival(0, 0.0, 9e9), Arrival(0, 10.0, 9e9), Arrival(0, 20.0, 9e9)]
    ends = Plan(arrivals, 5, 2, COSTS, 300.0, earlier=0, seed=0).ends()
    first, second = 720 * luck(0, 0, 1), 660 * luck(0, 0, 2)
    assert ends == pytest.approx([10 + first + 2, 10 + first + 2, 10 + first + 2 + second + 2])


def test_missed_counts_what_has_not_ended():
    """A request without an end has missed its deadline; one that has not arrived is not counted."""
    arrivals = [Arrival(0, 0.0, 10.0)] * 4
    assert missed(arrivals, [9.0, 11.0, None]) == {1, 2}
