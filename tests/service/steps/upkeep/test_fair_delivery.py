"""A receiver that is slow or gone delays nobody else: API keys and hosts take turns, and a silent host is paused."""

import threading
from datetime import timedelta

import pytest
from sqlalchemy import func, select, text, update

from service.db import callback_lanes, outbox
from service.db.limit_tables import CallbackLane
from service.db.outbox import Outcome
from service.db.tables import DeletionRequest, Outbox
from service.steps.upkeep.deliver import CALLBACK_SLOTS, deliver_alerts, deliver_callbacks
from service.steps.upkeep.sweep import wake_lost_work
from tests.receiver import receiving, tar_pit
from tests.service.conftest import REQUESTS, submit

HELD = timedelta(seconds=20)


@pytest.fixture
def ended(api, model, new_key):
    """Make requests of a new API key that have ended, each with a callback URL; returns their ids."""

    def make(*urls: str) -> list[str]:
        headers = {"Authorization": f"Bearer {new_key('submit')}"}
        ids = [submit(api, headers=headers, callback_url=url)["id"] for url in urls]
        for request_id in ids:
            assert api.delete(f"{REQUESTS}/{request_id}", headers=headers).status_code == 200
        return ids

    return make


def attempts(count: int):
    """A `go_on` that allows so many attempts."""
    left = iter(range(count))
    return lambda: next(left, None) is not None


def claim(services) -> str | None:
    """The request whose callback is claimed next."""
    with services.db.transaction() as session:
        due = outbox.claim_due(session, HELD)
        return str(due.request_id) if due else None


def store_delivered(services, request_id: str) -> None:
    """Store that a request's callback was delivered."""
    with services.db.transaction() as session:
        (entry,) = session.scalars(select(Outbox.id).where(Outbox.request_id == request_id))
        outbox.store_attempt(session, entry, Outcome.DELIVERED, 26)


def test_a_tar_pit_with_many_callbacks_delays_nobody_else(services, ended):
    """Its submitter has waited for longer and has much more to send; everybody else is served after one attempt."""
    services.settings.callback_seconds = 0.3
    with tar_pit() as pit, receiving() as receiver:
        ended(*[f"{pit.url}/{number}" for number in range(30)])
        others = [ended(f"{receiver.url}/{number}") for number in range(3)]
        delivered = deliver_callbacks(services, go_on=attempts(4))
        assert (len(pit.calls), len(receiver.calls), delivered) == (1, len(others), len(others))


def test_a_host_that_does_not_answer_is_paused_as_a_whole(services, ended):
    """After three attempts in a row; what else waits for it is put off, what comes later waits, too."""
    services.settings.callback_seconds = 0.2
    with tar_pit() as pit:
        ended(*[f"{pit.url}/{number}" for number in range(20)])
        assert deliver_callbacks(services) == 0
        assert len(pit.calls) == 3
        with services.db.transaction() as session:
            (lane,) = session.scalars(select(CallbackLane))
            assert lane.failures == 3
            waiting = session.execute(select(Outbox.next_at, Outbox.attempts).where(Outbox.lane == lane.lane)).all()
            assert len(waiting) == 20
            assert {entry.attempts for entry in waiting} == {0, 1}
            assert all(entry.next_at >= lane.next_at for entry in waiting)
            request = session.scalar(select(DeletionRequest).limit(1))
            outbox.enqueue(session, request, "completed")
            session.flush()
            newest = session.scalar(select(Outbox.next_at).where(Outbox.status == "completed"))
            assert newest >= lane.next_at


def test_other_hosts_of_the_same_key_go_on(services, ended):
    """Only the silent host pauses."""
    services.settings.callback_seconds = 0.2
    with tar_pit() as pit, receiving() as receiver:
        elsewhere = receiver.url.replace("127.0.0.1", "localhost")
        ended(*[f"{pit.url}/{number}" for number in range(20)], *[f"{elsewhere}/{number}" for number in range(5)])
        assert deliver_callbacks(services) == 5
        assert (len(pit.calls), len(receiver.calls)) == (3, 5)


def test_a_paused_host_that_answers_again_gets_everything(services, ended):
    """An answer, whatever it says, ends the pause."""
    with receiving() as receiver:
        ended(*[f"{receiver.url}/{number}" for number in range(5)])
        with services.db.transaction() as session:
            lane = session.scalar(select(Outbox.lane).limit(1))
            for _ in range(3):
                callback_lanes.store_failure(session, lane, outbox.MAX_BACKOFF)
        assert deliver_callbacks(services) == 0
        with services.db.transaction() as session:
            session.execute(update(Outbox).values(next_at=func.now()))
        receiver.answers[:] = [500]
        assert deliver_callbacks(services) == 4
        with services.db.transaction() as session:
            assert session.scalars(select(CallbackLane)).all() == []


def test_nobody_can_pause_another_keys_callbacks_to_the_same_host(services, ended):
    """A lane is of one API key and one host; host names are compared as DNS compares them."""
    ended("https://one.example/x")
    ended("https://one.example/y", "https://ONE.example.:8443/z")
    with services.db.transaction() as session:
        lanes = session.scalars(select(Outbox.lane)).all()
    assert (len(lanes), len(set(lanes))) == (3, 2)


def test_one_call_at_a_time_to_a_host_and_two_for_a_key(services, ended):
    """Whatever is due; a lane is free again when its attempt is stored."""
    one, two = "https://one.example/", "https://two.example/"
    mine = ended(one, one, two, two, "https://three.example/")
    theirs = ended(one)
    assert [claim(services) for _ in range(4)] == [mine[0], theirs[0], mine[2], None]
    store_delivered(services, mine[0])
    assert claim(services) == mine[1]


def test_keys_take_turns(services, ended):
    """However much one of them has to send, and however long it has been waiting."""
    many, few = ended(*["https://one.example/"] * 4), ended(*["https://two.example/"] * 2)
    served = []
    for _ in range(6):
        served.append(claim(services))
        store_delivered(services, served[-1])
    assert served == [many[0], few[0], many[1], few[1], many[2], many[3]]


def test_alerts_do_not_wait_behind_submitters_callbacks(services, ended):
    """Every slot for callbacks is taken by tar pits, and the operator hears of what happened nevertheless."""
    services.settings.callback_seconds = 5
    with tar_pit() as pit, receiving() as operator:
        services.settings.alert_url = f"{operator.url}/alert"
        ids = [ended(f"{pit.url}/{number}")[0] for number in range(4)]
        with services.db.transaction() as session:
            outbox.enqueue_alert(session, ids[0], "overdue")
        senders = [threading.Thread(target=deliver_callbacks, args=[services]) for _ in range(4)]
        for sender in senders:
            sender.start()
        for number in range(4):
            pit.until(f"/{number}", 1)
        assert not CALLBACK_SLOTS.acquire(blocking=False)
        assert deliver_alerts(services) == 1
        assert operator.to("/alert")[0].json["type"] == "deletion_request.overdue"
        for sender in senders:
            sender.join()


def test_what_waits_too_long_for_a_silent_host_is_given_up(services, ended):
    """So that its texts can be purged: a thousand entries of a dead host would otherwise outlive any window."""
    old, new = ended("https://gone.example/", "https://gone.example/")
    aged = text("UPDATE outbox SET created_at = now() - interval '5 days' WHERE request_id = :id")
    with services.db.transaction() as session:
        session.execute(aged, {"id": old})
        lane = session.scalar(select(Outbox.lane).limit(1))
        given_up = [callback_lanes.store_failure(session, lane, outbox.MAX_BACKOFF) for _ in range(3)]
    assert [[str(request_id) for request_id in ids] for ids in given_up] == [[], [], [old]]
    with services.db.transaction() as session:
        waiting = session.scalars(select(Outbox.request_id).where(Outbox.next_at.is_not(None), Outbox.target >= 0))
        assert [str(request_id) for request_id in waiting] == [new]


def test_a_callback_of_an_older_release_gets_its_turn(services, ended):
    """A process that still runs the older code stores no API key; the sweep adds it."""
    (request_id,) = ended("https://one.example/")
    with services.db.transaction() as session:
        session.execute(update(Outbox).values(api_key_id=None, lane=None))
    assert claim(services) is None
    wake_lost_work(services)
    assert claim(services) == request_id
