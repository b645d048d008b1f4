"""The simulator: the service's own scheduling in virtual time, small, and seen to fail where it should."""

from dataclasses import replace

import pytest
from sqlalchemy import func, select

from bench.simulator import plan
from bench.simulator.arrivals import Arrival, Demand
from bench.simulator.clock import START
from bench.simulator.costs import Costs, luck
from bench.simulator.fleet import FleetOptions
from bench.simulator.reference import Plan, missed
from bench.simulator.results import summary
from bench.simulator.run import Options, Result, simulate
from service.db import claims
from service.db.jobs import claimable
from service.db.tables import DeletionRequest, Job

HOUR = 3600
COSTS = Costs(fixed=600, per_record=60, per_watched=0, per_earlier=0, epochs=2, certify=1, publish=1, source="a test")
ALIKE = replace(COSTS, per_record=0)
KILLED = Options(
    Demand(requests=40, models=4, seconds=HOUR, due=(HOUR, 9 * HOUR), seed=3),
    FleetOptions(workers=3, scaling="keda", deaths_per_hour=2, polling_seconds=60),
    COSTS,
    batch=8,
    max_wait_seconds=300,
    sweep_seconds=120,
)
# One worker, and four models with a full batch each at the start.
QUEUED = Options(Demand(requests=16, models=4, seconds=1, due=(0, 0), seed=0), FleetOptions(workers=1), COSTS, batch=4)


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
    last_end = max(end.at for end in killed.ends)
    assert (killed.last_event - START).total_seconds() == pytest.approx(last_end, abs=1)


def test_a_busy_worker_beats_four_times_in_a_lease(killed):
    """With those that are only counted, and less the part of an interval that each claim ends with."""
    beats = killed.meter.done["heartbeat"] + killed.meter.counted["heartbeat"]
    most = killed.watch.seconds["busy"] / (60 / 4)
    assert most - killed.meter.done["claim"] <= beats <= most


def with_deadlines(monkeypatch) -> None:
    """Let the models be due in the reverse of their order, each with the time for one more job."""
    job = COSTS.compute(4, 0) * 1.2 + 120
    due = [(4 - model) * job for model in range(4)]
    arrivals = [Arrival(number % 4, 0.0, round(due[number % 4], 3)) for number in range(16)]
    monkeypatch.setattr(Demand, "arrivals", lambda _: arrivals)


def test_deadlines_that_can_be_kept_are_kept(monkeypatch):
    """The model that is due first is dealt with first, whichever was batched first."""
    with_deadlines(monkeypatch)
    result = simulate(QUEUED)
    assert [end.status for end in result.ends] == ["completed"] * 16
    assert not missed(result.arrivals, [end.at for end in result.ends])


@pytest.mark.slow
def test_another_order_is_seen(monkeypatch):
    """Were the latest deadline first, the simulator would show what the reference plan keeps."""

    def latest_first(session, stages, memory):
        due = select(func.min(DeletionRequest.due_at)).where(DeletionRequest.job_id == Job.id).scalar_subquery()
        return session.scalar(select(Job.id).where(*claimable(stages)).order_by(due.desc()).limit(1))

    with_deadlines(monkeypatch)
    monkeypatch.setattr(claims, "most_urgent", latest_first)
    result = simulate(QUEUED)
    assert int(summary(result)["missed that the reference plan keeps"]) > 0


@pytest.mark.slow
def test_a_job_that_fails_ends_the_run():
    """A worker that is killed every minute never ends a phase of minutes."""
    one = replace(KILLED.demand, requests=1, models=1)
    hopeless = replace(KILLED.fleet, workers=1, deaths_per_hour=60)
    with pytest.raises(RuntimeError, match="jobs quarantined: 1, "):
        simulate(replace(KILLED, demand=one, fleet=hopeless, horizon=12 * HOUR))


def test_the_reference_plan_by_hand():
    """One worker: the later arrival with the earlier deadline goes first as soon as somebody is free."""
    arrivals = [Arrival(0, 0.0, 5000.0), Arrival(1, 1.0, 9000.0), Arrival(2, 2.0, 1500.0)]
    lucky = [600 * luck(7, model, 1) for model in range(3)]
    ends = Plan(arrivals, 1, 1, ALIKE, earlier=0, seed=7).ends()
    assert ends == pytest.approx([lucky[0] + 2, sum(lucky) + 2, lucky[0] + lucky[2] + 2])
    assert missed(arrivals, ends) == set()


def test_the_reference_plan_serves_what_is_left_over():
    """A model has one job at a time, and what does not fit in it is served by the next ones."""
    arrivals = [Arrival(0, float(at), 9e9 + at) for at in range(5)]
    first, second, third = (600 * luck(0, 0, number) + 2 for number in (1, 2, 3))
    ends = Plan(arrivals, 5, 2, ALIKE, earlier=0, seed=0).ends()
    second, third = first + second, first + second + third
    assert ends == pytest.approx([first, second, second, third, third])


def test_missed_counts_what_has_not_ended():
    """A request without an end has missed its deadline; one that has not arrived is not counted."""
    arrivals = [Arrival(0, 0.0, 10.0)] * 4
    assert missed(arrivals, [9.0, 11.0, None]) == {1, 2}


def test_a_job_watches_as_many_earlier_requests_as_it_has_records():
    """None without earlier ones; else 16 to 64."""
    costs = replace(ALIKE, per_watched=10, per_earlier=1)
    assert costs.compute(3, 0) == 600
    assert [costs.compute(records, 5) - 605 for records in (3, 40, 256)] == [160, 400, 640]


def test_a_month_of_one_model():
    """In the long run its jobs take 30 days, each with the earlier requests of three months."""
    costs = replace(ALIKE, per_watched=10, per_earlier=1)
    cleared = plan.steady_month(costs, 32)
    assert cleared / 32 * (costs.compute(32, 3 * cleared) + costs.control) == pytest.approx(plan.MONTH)
    assert plan.first_month(replace(costs, per_watched=0, per_earlier=0), 32) == plan.MONTH // 602 * 32


def test_workers_for_so_many_a_day():
    """A thousand jobs a day, of 600 s and of 90 days of earlier requests, and a tenth more for kills."""
    costs = replace(ALIKE, per_earlier=1)
    earlier, seconds, busy = plan.workers(costs, 10, 10_000, 1000, 1.1)
    assert (earlier, seconds) == (900, 1500)
    assert busy == pytest.approx(1000 * 1500 * 1.1 / 86_400)
