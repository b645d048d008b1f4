"""Windows become jobs: one at a time for a model, beside submissions and cancellations."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from sqlalchemy.exc import IntegrityError

from service.db import claims, jobs, log_entries, models, pending_requests, requests
from service.db.tables import Job
from service.domain.states import COMPUTE_STAGES, RequestStatus
from service.local.process import wait_until
from service.steps.path.batch import batch_requests
from tests.growth import grow
from tests.service.conftest import REQUESTS, logged, only_model, registration, submit
from tests.service.jobs import claim, fail_what_waits


def waits_for_a_lock(services) -> bool:
    """Whether a statement of this database waits for another's lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with psycopg.connect(services.settings.owner_database_url) as connection:
        return connection.execute(query).fetchone()[0] > 0


def test_a_request_that_is_being_batched_is_not_cancelled(api, services, model, monkeypatch):
    """Who cancels waits for the batch that holds it, and is told that it is too late."""
    request = submit(api)
    url, waiting = f"{REQUESTS}/{request['id']}", []

    def meanwhile(*arguments, **values):
        waiting.append(pool.submit(api.delete, url))
        assert wait_until(lambda: waits_for_a_lock(services), 60)
        return real_move(*arguments, **values)

    real_move = requests.move
    monkeypatch.setattr(requests, "move", meanwhile)
    with ThreadPoolExecutor() as pool:
        assert batch_requests(services, only_model(services)) is not None
        assert waiting[0].result().status_code == 409
    assert api.get(url).json()["status"] == "batched"


def test_a_request_that_is_being_cancelled_is_not_batched(api, services, model):
    """Who batches does not wait for it, and leaves it out."""
    request, other = submit(api), submit(api)
    with services.db.transaction() as session:
        cancelled = requests.by_id(session, request["id"], lock=True)
        requests.move(session, [cancelled], RequestStatus.CANCELLED)
        session.flush()
        job_id = batch_requests(services, only_model(services))
    states = [api.get(f"{REQUESTS}/{r['id']}").json() for r in (request, other)]
    assert [(f["status"], f["job_id"]) for f in states] == [("cancelled", None), ("batched", str(job_id))]


def test_one_window_one_job_and_no_second_while_it_runs(api, services, model):
    """Requests of one window form one job; what comes once a worker has claimed it waits for the model's next."""
    first, second = submit(api), submit(api)
    model_id = only_model(services)
    job_id = batch_requests(services, model_id)
    claim(services, job_id)
    third = submit(api)
    assert batch_requests(services, model_id) is None
    states = {i: api.get(f"{REQUESTS}/{i}").json() for i in (first["id"], second["id"], third["id"])}
    assert {states[first["id"]]["job_id"], states[second["id"]]["job_id"]} == {str(job_id)}
    assert states[third["id"]]["status"] == "pending"
    with pytest.raises(IntegrityError), services.db.transaction() as session:
        other = session.get(Job, job_id)
        session.add(Job(model_id=model_id, parent_version_id=other.parent_version_id, policy={}))


def members(services, job_id) -> list[str]:
    """The ids of a job's requests."""
    with services.db.reading() as session:
        return [str(request.id) for request in requests.of_job(session, job_id)]


def joined(services) -> list[tuple[str, list[str]]]:
    """What the log says of who joined a job: (job, refs)."""
    return [(entry["job"], entry["refs"]) for entry in logged(services) if entry["kind"] == "job.joined"]


def nobody_joins(api, services, job_id) -> bool:
    """Whether a new request leaves a job with its one."""
    submit(api)
    return batch_requests(services, only_model(services)) is None and len(members(services, job_id)) == 1


def registered(api, base, **policy) -> None:
    """The model with this policy."""
    assert api.post("/v1/models", json=registration(base, policy=policy)).status_code == 201


def test_a_job_takes_in_what_comes_until_a_worker_claims_it(api, services, base):
    """As much as there is room for, the earliest deadline first; the log names who joined."""
    registered(api, base, max_batch_records=4, max_wait_seconds=0)
    model_id = only_model(services)
    first = submit(api, records=[{"text": "a"}, {"text": "b"}])
    job_id = batch_requests(services, model_id)
    early = (datetime.now(UTC) - timedelta(days=9)).isoformat()
    large = submit(api, records=[{"text": "x"}, {"text": "y"}, {"text": "z"}])
    late, urgent, last = submit(api), submit(api, received_at=early), submit(api)
    assert batch_requests(services, model_id) is None
    assert members(services, job_id) == [first["id"], late["id"], urgent["id"]]
    assert batch_requests(services, model_id) is None
    assert last["id"] not in members(services, job_id)
    assert joined(services) == [(str(job_id), sorted(request["ref"] for request in (late, urgent)))]
    states = [api.get(f"{REQUESTS}/{request['id']}").json()["status"] for request in (large, last)]
    assert states == ["pending", "pending"]


def test_a_job_that_was_claimed_once_takes_in_nobody(api, services, model):
    """Not while it waits for a second attempt either: its files are those of its requests."""
    submit(api)
    job_id = batch_requests(services, only_model(services))
    claim(services, job_id)
    with services.db.transaction() as session:
        jobs.release(session.get(Job, job_id), delay_seconds=0, count=True)
    assert nobody_joins(api, services, job_id)


def test_who_joins_a_job_waits_for_no_claim_of_it(api, services, model):
    """A worker that claims it right now goes before, and takes what was in it."""
    submit(api)
    job_id = batch_requests(services, only_model(services))
    submit(api)
    with services.db.transaction() as session:
        assert jobs.claim(session, job_id, "me", COMPUTE_STAGES, lease_seconds=9)
        assert batch_requests(services, only_model(services)) is None
    assert len(members(services, job_id)) == 1


def test_a_part_of_a_split_job_takes_in_nobody(api, services, model):
    """It was made to find out which request made the job fail."""
    for _ in range(2):
        submit(api)
    fail_what_waits(services)
    part = batch_requests(services, only_model(services))
    assert nobody_joins(api, services, part)


def test_nobody_joins_a_job_of_an_older_policy(api, services, model):
    """An operator who makes it stricter means all that comes from then on."""
    submit(api)
    job_id = batch_requests(services, only_model(services))
    body = {"policy": {"max_wait_seconds": 0, "max_perplexity_ratio": 1.1}, "policy_version": 1}
    assert api.put(f"/v1/models/{model}/policy", json=body).status_code == 200
    assert nobody_joins(api, services, job_id)


def test_no_more_join_than_the_entries_of_the_log_can_name(api, services, model):
    """A job that ends names all of its requests."""
    submit(api)
    job_id = batch_requests(services, only_model(services))
    with services.db.transaction() as session:
        sealed = models.by_name(session, model, lock=True)
        sealed.policy = session.get(Job, job_id).policy = {**sealed.policy, "max_batch_records": 10_000}
    grow(services, model, requests=1100)
    assert batch_requests(services, only_model(services)) is None
    assert len(members(services, job_id)) == 1000


def test_a_claim_passes_over_a_job_for_as_long_as_somebody_joins_it(api, services, model, monkeypatch):
    """So the job's worker is woken when they have."""
    submit(api)
    job_id = batch_requests(services, only_model(services))
    submit(api)
    seen, woken = [], []

    def meanwhile(*arguments, **values):
        with services.db.transaction() as session:
            seen.append(claims.most_urgent(session, COMPUTE_STAGES))
        return real_move(*arguments, **values)

    real_move = requests.move
    monkeypatch.setattr(requests, "move", meanwhile)
    monkeypatch.setattr(services.queue, "wake", lambda *arguments, **_: woken.append(arguments))
    batch_requests(services, only_model(services))
    assert (seen, woken) == ([None], [("unlearn", job_id)])


def test_several_processes_let_no_more_join_than_there_is_room_for(api, services, base):
    """The model's row is locked meanwhile, so each sees who has joined before it."""
    registered(api, base, max_batch_records=4, max_wait_seconds=0)
    submit(api)
    model_id = only_model(services)
    job_id = batch_requests(services, model_id)
    for _ in range(6):
        submit(api)
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda _: batch_requests(services, model_id), range(6))) == [None] * 6
    assert len(members(services, job_id)) == 4
    assert len({ref for _, refs in joined(services) for ref in refs}) == 3


def test_the_sweep_wakes_a_model_whose_job_waits(api, services, model):
    """So a request joins it if its own message was lost. Once the job is claimed, its model is left alone."""
    submit(api)
    job_id = batch_requests(services, only_model(services))
    with services.db.reading() as session:
        assert pending_requests.waiting_models(session) == []
    submit(api)
    with services.db.reading() as session:
        assert pending_requests.waiting_models(session) == [only_model(services)]
    claim(services, job_id)
    with services.db.reading() as session:
        assert pending_requests.waiting_models(session) == []


def test_keys_take_turns_whatever_deadlines_one_of_them_claims(api, services, model, new_key):
    """A key with many requests that are long overdue does not fill the batch; within a key the earliest goes first."""
    early = (datetime.now(UTC) - timedelta(days=300)).isoformat()
    flood = [submit(api, received_at=early) for _ in range(40)]
    patient = {"Authorization": f"Bearer {new_key('submit')}"}
    other = api.post(REQUESTS, json={"model": "tiny", "records": [{"text": "a"}]}, headers=patient).json()
    batch_requests(services, only_model(services))
    assert api.get(f"{REQUESTS}/{other['id']}").json()["status"] == "batched"
    assert [api.get(f"{REQUESTS}/{r['id']}").json()["status"] for r in flood].count("batched") == 31
    too_old = (datetime.now(UTC) - timedelta(days=400)).isoformat()
    refused = api.post(REQUESTS, json={"model": "tiny", "records": [{"text": "a"}], "received_at": too_old})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "received_at")


def test_a_job_holds_no_more_requests_than_its_entry_of_the_log_can_name(services, model):
    """Of 1100 pending requests that the policy would put into one job, 1000 form it."""
    grow(services, model, requests=1100)
    with services.db.transaction() as session:
        sealed = models.by_name(session, model, lock=True)
        sealed.policy = {**sealed.policy, "max_batch_records": 10_000}
    job_id = batch_requests(services, only_model(services))
    with services.db.reading() as session:
        assert len(requests.of_job(session, job_id)) == 1000


def test_a_batch_that_the_log_refuses_is_no_other_active_job(api, services, model, monkeypatch):
    """Only the index of active jobs means that there is nothing to do; whatever else the database refuses is raised."""
    submit(api)
    monkeypatch.setattr(requests, "move", lambda session, *_, **__: log_entries.append(session, "x", data="y" * 65536))
    with pytest.raises(IntegrityError, match="64 KiB"):
        batch_requests(services, only_model(services))
    monkeypatch.undo()
    assert batch_requests(services, only_model(services)) is not None
    submit(api)
    monkeypatch.setattr(jobs, "has_active_job", lambda *_: False)
    assert batch_requests(services, only_model(services)) is None


def test_two_workers_batching_at_once_make_one_job(api, services, model):
    """The model's row is locked while a window is sealed."""
    for _ in range(4):
        submit(api)
    model_id, made = only_model(services), []
    threads = [threading.Thread(target=lambda: made.append(batch_requests(services, model_id))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([m for m in made if m]) == 1


def test_accepting_does_not_wait_for_batching_nor_the_other_way_round(api, services, model):
    """Sealing holds the model and then asks for the log; accepting holds the log and then looks at the model's key."""
    answers = []
    with services.db.transaction() as session:
        assert models.lock(session, only_model(services))
        thread = threading.Thread(target=lambda: answers.append(submit(api)))
        thread.start()
        thread.join(20)
        assert answers
        assert answers[0]["status"] == "pending"
        log_entries.append(session, "test")
    held = threading.Event()

    def hold_the_log() -> None:
        with services.db.transaction() as session:
            log_entries.append(session, "test")
            held.wait(10)

    thread = threading.Thread(target=hold_the_log)
    thread.start()
    with services.db.transaction() as session:
        assert models.lock(session, only_model(services)) is not None
    held.set()
    thread.join()
