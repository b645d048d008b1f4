"""Rechecks: on a schedule all earlier requests are measured in full, and what came back is unlearned again."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from service.audit.canonical import dumps
from service.audit.lost_entries import came_back
from service.db import compute_workers, rechecks, requests, restored_requests
from service.db.recheck_tables import Recheck, RecheckShard
from service.db.tables import DeletionRequest, Outbox, Version
from service.domain.errors import LostLease, StorageAway
from service.domain.slot import Slot
from service.lease import fail_attempt
from service.shard_lease import hold_shard
from service.steps.path.batch import batch_requests
from service.steps.path.compute_input import shard_input
from service.steps.upkeep import recheck
from service.steps.upkeep.purge import purge_due
from service.steps.upkeep.recheck import begin_rechecks, finish_rechecks
from service.steps.upkeep.sweep import collect_garbage
from tests.service.conftest import REQUESTS, logged, only_model, submit
from tests.service.jobs import publish_what_waits, published, release_folder
from worker import drain, tasks

RECHECKS = "/v1/models/tiny/rechecks"


def age(services, days: float, table=Version) -> None:
    """As if these rows had been made so long ago."""
    with services.db.transaction() as session:
        session.execute(update(table).values(created_at=datetime.now(UTC) - timedelta(days=days)))


@pytest.fixture
def fulfilled(api, services, model, monkeypatch):
    """Three fulfilled requests, with a version that is old enough to be measured again; each request is a shard."""
    monkeypatch.setattr(rechecks, "SHARD_RECORDS", 1)
    made = [published(api, services, text) for text in ("first", "second", "third")]
    age(services, 31)
    return made


def measure(services, back: int = 0) -> list[str]:
    """Measure all shards; the first ones find that their request came back. Returns the refs of all, in order."""
    refs = []
    while True:
        with hold_shard(services) as lease:
            if lease is None:
                return refs
            with services.db.transaction() as session:
                shard = rechecks.owned(session, lease.job_id, lease.fence)
                ref = session.scalar(select(DeletionRequest.ref).where(DeletionRequest.seq == shard.first_seq))
            refs.append(ref)
            lease.store(1, [ref] if len(refs) <= back else [])


def statuses(api, made) -> list[str]:
    """The present statuses of requests."""
    return [api.get(f"{REQUESTS}/{request['id']}").json()["status"] for request in made]


def latest(api) -> dict:
    """The newest recheck."""
    return api.get(RECHECKS).json()["items"][0]


def test_all_earlier_requests_are_measured_on_the_newest_version(api, services, fulfilled):
    """Each is in one shard; it ends when all are measured, and the log says how many."""
    begin_rechecks(services)
    begin_rechecks(services)
    assert len(api.get(RECHECKS).json()["items"]) == 1
    finish_rechecks(services)
    begun = latest(api)
    assert (begun["version"], begun["requests"], begun["shards"], begun["shards_ended"]) == (3, 3, 3, 0)
    assert begun["finished_at"] is begun["outcome"] is None
    assert len(set(measure(services))) == 3
    finish_rechecks(services)
    ended = latest(api)
    assert (ended["outcome"], ended["measured"], ended["reopened"]) == ("passed", 3, 0)
    assert statuses(api, fulfilled) == ["completed"] * 3
    (entry,) = [entry for entry in logged(services) if entry["kind"] == "version.rechecked"]
    assert (entry["number"], entry["requests"], entry["measured"], entry["reopened"]) == (3, 3, 3, [])
    begin_rechecks(services)
    assert len(api.get(RECHECKS).json()["items"]) == 1  # the next one is due in thirty days
    age(services, 31, Recheck)
    begin_rechecks(services)
    assert len(api.get(RECHECKS).json()["items"]) == 2


def test_what_came_back_is_pending_again_and_goes_into_the_next_job(api, services, fulfilled):
    """The log opens its deadline again, and the next version fulfils it."""
    begin_rechecks(services)
    back = measure(services, back=1)[0]
    finish_rechecks(services)
    assert statuses(api, fulfilled) == ["pending", "completed", "completed"]
    reopened = api.get(f"{REQUESTS}/{fulfilled[0]['id']}").json()
    assert (reopened["reason"], reopened["version"]) == ("came_back", None)
    assert datetime.fromisoformat(reopened["due_at"]) > datetime.now(UTC) + timedelta(days=29)
    assert (latest(api)["outcome"], latest(api)["reopened"]) == ("reopened", 1)
    (entry,) = [entry for entry in logged(services) if entry["kind"] == "version.rechecked"]
    assert entry["reopened"] == [back]
    assert entry["due"] == reopened["due_at"][:10]
    publish_what_waits(services)
    assert statuses(api, fulfilled) == ["completed"] * 3
    assert api.get(f"{REQUESTS}/{fulfilled[0]['id']}").json()["version"] == 4


def test_what_ended_or_was_purged_meanwhile_is_not_opened_again(api, services, fulfilled):
    """Its texts are gone, so nothing could be unlearned."""
    begin_rechecks(services)
    measure(services, back=3)
    services.settings.custody_days = 0
    assert purge_due(services) == 3
    finish_rechecks(services)
    assert (latest(api)["outcome"], latest(api)["reopened"]) == ("passed", 0)
    assert statuses(api, fulfilled) == ["completed"] * 3


def test_what_a_newer_version_fulfils_is_not_measured_on_an_older_one(api, services, fulfilled):
    """It was pending when the recheck began, and lies between those that it measures."""
    begin_rechecks(services)
    with services.db.transaction() as session:
        between = session.scalar(select(DeletionRequest).where(DeletionRequest.id == fulfilled[1]["id"]))
        between.version, between.finished_at = 4, datetime.now(UTC) + timedelta(seconds=1)
        shards = session.scalars(select(RecheckShard).order_by(RecheckShard.first_seq)).all()
        shards[0].last_seq = shards[-1].last_seq
        session.delete(shards[1])
        session.delete(shards[2])
        refs = [session.get(DeletionRequest, request["id"]).ref for request in fulfilled]
    with hold_shard(services) as lease:
        inputs = shard_input(services, lease.job_id, lease.fence)
        assert sorted(inputs.earlier_refs.values()) == sorted((refs[0], refs[2]))
        lease.store(2, refs)  # a worker that was taken over names all
    finish_rechecks(services)
    assert statuses(api, fulfilled) == ["pending", "completed", "pending"]


def test_refs_of_other_shards_are_not_believed(api, services, fulfilled):
    """A compute worker opens what it has measured, and nothing else."""
    begin_rechecks(services)
    with services.db.reading() as session:
        refs = list(session.scalars(select(DeletionRequest.ref).order_by(DeletionRequest.seq)))
    with hold_shard(services) as lease:
        lease.store(1, refs)
    measure(services)
    finish_rechecks(services)
    assert statuses(api, fulfilled) == ["pending", "completed", "completed"]


def test_older_versions_are_not_handed_out_for_what_came_back(api, services, fulfilled, new_key):
    """They remember it as much as they did before; and once the next job finds it forgotten, it is watched again."""
    auth = {"Authorization": f"Bearer {new_key('download')}"}
    path = "/v1/models/tiny/versions/{}/files/model/config.json"
    begin_rechecks(services)
    measure(services, back=3)
    finish_rechecks(services)
    codes = [api.get(path.format(number), headers=auth).status_code for number in (1, 2, 3)]
    assert codes == [403, 403, 200]
    with services.db.transaction() as session:
        for request in session.scalars(select(DeletionRequest)):
            requests.move(session, [request], "batched")
            requests.move(session, [request], "not_memorised", reason="already_passes", version=None)
    assert [api.get(path.format(number), headers=auth).status_code for number in (1, 2, 3)] == codes
    with services.db.reading() as session:
        assert len(requests.in_custody(session, only_model(services))) == 3


def test_a_shard_that_is_too_large_for_a_slot_is_left_to_a_larger_one(api, services, fulfilled, as_process):
    """If one lives; else the shard is given up, and so are those that a larger one has left behind."""
    begin_rechecks(services)
    small, large = Slot((), 24), Slot((), 80)
    with services.db.transaction() as session:
        compute_workers.note(session, "large", [large])
    for _ in range(3):
        with hold_shard(as_process("compute"), small) as lease:
            lease.fail("model_too_large", permanent=True)
    waited = {"not_before": datetime.now(UTC) - timedelta(hours=1)}
    with services.db.transaction() as session:
        session.execute(update(RecheckShard).values(waited))
    with hold_shard(services, small) as none:
        assert none is None
    finish_rechecks(services)  # the larger one lives
    with hold_shard(services, large) as lease:
        lease.store(1, [])
    with services.db.transaction() as session:
        compute_workers.forget(session, "large")
    finish_rechecks(services)
    assert (latest(api)["outcome"], latest(api)["reasons"]) == ("incomplete", ["model_too_large"])


def test_a_reason_is_a_code(api, services, fulfilled):
    """Whatever a child says, and whatever the login of compute writes."""
    begin_rechecks(services)
    with hold_shard(services) as lease:
        lease.fail("Maria.Example/12-Sample-Street", permanent=True)
    with hold_shard(services) as lease:
        with pytest.raises(IntegrityError), services.db.transaction() as session:
            rechecks.owned(session, lease.job_id, lease.fence).reason = "Maria.Example/12"
        lease.hand_back()
    measure(services)
    finish_rechecks(services)
    assert latest(api)["reasons"] == ["failed"]


def test_storage_that_is_away_makes_a_shard_wait(api, services, fulfilled, monkeypatch):
    """It costs no attempt, and nobody takes it again at once."""
    begin_rechecks(services)

    def away(*_):
        raise StorageAway("the bucket")

    monkeypatch.setattr(tasks, "run_shard", away)
    assert [tasks.measure_shard(services) for _ in range(4)] == [True, True, True, False]
    with services.db.reading() as session:
        assert set(session.scalars(select(RecheckShard.attempts))) == {0}


def test_the_logins_of_control_and_compute_suffice(api, services, fulfilled, as_process):
    """Control begins and ends a recheck, compute measures it."""
    begin_rechecks(as_process("control"))
    assert len(measure(as_process("compute"), back=1)) == 3
    finish_rechecks(as_process("control"))
    assert latest(api)["reopened"] == 1


def test_a_restored_database_opens_again_what_came_back(api, services, fulfilled):
    """By the entries of the log that it lost; not what a newer version has fulfilled since."""
    begin_rechecks(services)
    measure(services, back=2)
    finish_rechecks(services)
    entries = [dumps(entry) for entry in logged(services)[-1:]]
    with services.db.transaction() as session:  # as an older backup has them
        for number, request in enumerate(fulfilled[:2]):
            row = session.get(DeletionRequest, request["id"])
            requests.move(session, [row], "completed", table={"pending": {"completed"}}, version=3 + number)
            row.came_back_from = None
    with services.db.transaction() as session:
        restored_requests.reopen_came_back(session, came_back(entries))
    assert statuses(api, fulfilled) == ["pending", "completed", "completed"]


def test_a_restored_database_learns_which_version_fulfilled_a_request_last(api, services, fulfilled):
    """One that it has as completed, and that a recheck had opened in what it lost."""
    with services.db.transaction() as session:
        row = session.get(DeletionRequest, fulfilled[0]["id"])
        line = {"ref": row.ref, "verdict": "PASS", "reason": "trained", "record_count": 1}
        job_id = session.get(DeletionRequest, fulfilled[2]["id"]).job_id
        restored_requests.end_as_certified(session, row.model_id, job_id, 9, [line])
        restored_requests.end_as_certified(session, row.model_id, job_id, 2, [line])
        assert (row.version, row.status) == (9, "completed")


def test_a_new_deadline_has_alerts_of_its_own(api, services, fulfilled):
    """Those of the first one were sent, and say nothing of the second."""
    with services.db.transaction() as session:
        request = session.get(DeletionRequest, fulfilled[0]["id"])
        session.add(Outbox(request_id=request.id, status="due_soon", target=-1, delivered_at=datetime.now(UTC)))
        session.add(Outbox(request_id=request.id, status="failed", target=-1, delivered_at=datetime.now(UTC)))
    begin_rechecks(services)
    measure(services, back=1)
    finish_rechecks(services)
    with services.db.reading() as session:
        kept = session.scalars(select(Outbox.status).where(Outbox.request_id == fulfilled[0]["id"], Outbox.target < 0))
        assert list(kept) == ["failed"]


def test_a_policy_says_how_often_or_never(api, services, fulfilled):
    """A policy of a release before rechecks means the default."""
    policy = api.get("/v1/models/tiny").json()
    body = {"policy": policy["policy"] | {"recheck_days": None}, "policy_version": policy["policy_version"]}
    assert api.put("/v1/models/tiny/policy", json=body).status_code == 200
    begin_rechecks(services)
    assert api.get(RECHECKS).json()["items"] == []
    body = {"policy": body["policy"] | {"recheck_days": 31.5}, "policy_version": policy["policy_version"] + 1}
    assert api.put("/v1/models/tiny/policy", json=body).status_code == 200
    begin_rechecks(services)
    assert api.get(RECHECKS).json()["items"] == []
    age(services, 32)
    begin_rechecks(services)
    assert latest(api)["requests"] == 3


def test_only_the_present_fence_writes(services, fulfilled):
    """A worker whose shard was taken over, or ended, changes nothing."""
    begin_rechecks(services)
    with hold_shard(services) as late:
        with services.db.transaction() as session:
            past = datetime.now(UTC) - timedelta(hours=1)
            session.execute(update(RecheckShard).where(RecheckShard.id == late.job_id).values(lease_expires_at=past))
        with hold_shard(services) as lease:
            assert lease.job_id == late.job_id
            late.fail("late")
            late.hand_back()
            with pytest.raises(LostLease):
                late.store(1, [])
            lease.store(1, [])
        with pytest.raises(LostLease):
            lease.store(1, ["again"])
        late.beat()
        assert late.lost.is_set()
    with services.db.reading() as session:
        shard = session.get(RecheckShard, late.job_id)
    assert (shard.losses, shard.attempts, shard.measured, shard.came_back) == (1, 1, 1, [])


def test_a_shard_that_fails_is_given_up_and_the_recheck_is_incomplete(api, services, fulfilled):
    """What the others found counts; it is tried again after a week, not after a month."""
    begin_rechecks(services)
    services.settings.retry_seconds = 0
    for _ in range(services.settings.max_attempts):
        with hold_shard(services) as lease:
            lease.fail("out_of_memory")
    measure(services, back=1)
    finish_rechecks(services)
    ended = latest(api)
    assert (ended["outcome"], ended["measured"], ended["reopened"]) == ("incomplete", 2, 1)
    assert ended["reasons"] == ["out_of_memory"]
    begin_rechecks(services)
    assert len(api.get(RECHECKS).json()["items"]) == 1
    age(services, 8, Recheck)
    begin_rechecks(services)
    assert len(api.get(RECHECKS).json()["items"]) == 2


def test_a_shard_that_keeps_losing_workers_is_given_up(api, services, fulfilled):
    """The others of its recheck are not kept waiting for it for ever."""
    begin_rechecks(services)
    with hold_shard(services) as lease, services.db.transaction() as session:
        lost = {"losses": services.settings.max_losses - 1, "lease_expires_at": datetime.now(UTC) - timedelta(hours=1)}
        session.execute(update(RecheckShard).where(RecheckShard.id == lease.job_id).values(**lost))
    finish_rechecks(services)
    measure(services)
    finish_rechecks(services)
    assert (latest(api)["outcome"], latest(api)["reasons"]) == ("incomplete", ["workers_lost"])


def test_a_recheck_that_is_halted_before_its_commit_changes_nothing(api, services, fulfilled, monkeypatch):
    """Log, requests and recheck are one transaction: the next sweep does it once."""
    begin_rechecks(services)
    measure(services, back=1)

    def fail(*_args, **_members):
        raise RuntimeError("halted")

    with monkeypatch.context() as halted:
        halted.setattr(recheck.withdrawals, "log_reopened", fail)
        with pytest.raises(RuntimeError):
            finish_rechecks(services)
    assert statuses(api, fulfilled) == ["completed"] * 3
    finish_rechecks(services)
    finish_rechecks(services)
    assert statuses(api, fulfilled) == ["pending", "completed", "completed"]
    assert [entry["kind"] for entry in logged(services)].count("version.rechecked") == 1


def test_an_idle_worker_measures_shards_with_a_child_and_jobs_come_first(api, services, fulfilled, monkeypatch):
    """A real child on the published version; a purged shard needs none; nothing is left of its folder."""
    begin_rechecks(services)
    submit(api, records=[{"text": "fourth"}])
    job_id = batch_requests(services, only_model(services))
    computed: list[object] = []

    def run(_, lease) -> None:
        with services.db.transaction() as session:
            assert rechecks.is_any(session)
        computed.append(lease.job_id)
        fail_attempt(services, lease, "criterion_missed", permanent=True)

    monkeypatch.setattr(tasks, "run_job", run)
    for request in fulfilled[:2]:
        assert api.post(f"{REQUESTS}/{request['id']}/purge").status_code == 200
    drain.drain(services)
    assert computed == [job_id]
    finish_rechecks(services)
    ended = latest(api)
    assert (ended["reasons"], ended["measured"], ended["shards"]) == ([], 1, 0)
    collect_garbage(services)
    assert services.storage.jobs_present() == []


def test_a_version_that_is_gone_is_not_measured(api, services, fulfilled):
    """Its shards are given up, with the reason; so is one of a file that was changed."""
    begin_rechecks(services)
    with services.db.transaction() as session:
        session.execute(update(Version).where(Version.number == 3).values(withdrawn_at=datetime.now(UTC)))
    assert tasks.measure_shard(services)
    with services.db.transaction() as session:
        session.execute(update(Version).where(Version.number == 3).values(withdrawn_at=None))
    weights = release_folder(api, services, 3) / "model/model.safetensors"
    weights.chmod(0o600)
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert tasks.measure_shard(services)
    measure(services)
    finish_rechecks(services)
    assert latest(api)["reasons"] == ["parent_changed", "version_gone"]
