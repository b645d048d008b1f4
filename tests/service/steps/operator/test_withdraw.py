"""Withdrawing a version never leaves a `latest` that remembers a completed request."""

import json
from typing import get_args

import pytest
from sqlalchemy import select, text, update

from service.audit.verify import verify
from service.db import log_entries, models
from service.db.tables import ApiKey, Outbox, Version
from service.doctor import examine
from service.domain.states import WITHDRAWAL_REASONS
from service.schemas.models import WithdrawalIn
from service.steps.operator.restore import reconcile
from service.steps.operator.withdraw import withdraw_version
from service.steps.path.batch import batch_requests
from service.steps.upkeep.purge import purge_due
from service.steps.upkeep.sweep import collect_garbage
from tests.growth import grow
from tests.service.conftest import REQUESTS, only_model, submit
from tests.service.jobs import publish_what_waits, published, release_folder
from tests.service.steps.operator.test_latest import backup, restore
from tests.status_door import planting

VERSIONS = "/v1/models/tiny/versions"


def withdraw(api, number: int, **fields):
    """The answer to a withdrawal."""
    return api.post(f"{VERSIONS}/{number}/withdraw", json={"reason": "faulty", **fields})


def state(api, request: dict) -> tuple[str, int | None]:
    """Status and version of a request."""
    answer = api.get(f"{REQUESTS}/{request['id']}").json()
    return answer["status"], answer["version"]


def handed_out(api) -> list[int]:
    """The versions that are not withdrawn, newest first."""
    return [item["version"] for item in api.get(VERSIONS).json()["items"] if item["withdrawn_at"] is None]


@pytest.fixture
def two(api, services, model):
    """Two requests, each fulfilled by a version of its own."""
    return published(api, services, "first"), published(api, services, "second")


def test_the_newest_version_is_withdrawn_only_if_its_requests_are_opened_again(api, services, two):
    """First it says what that costs; then the request is pending, and the next job starts from what is left."""
    first, second = two
    costs = [api.get(f"{VERSIONS}/{number}/withdrawal").json() for number in (2, 1)]
    assert costs[0] == {"latest": 1, "reopened": 1, "overdue": 0, "purged": 0}
    assert costs[1] == {"latest": 2, "reopened": 0, "overdue": 0, "purged": 0}
    refused = withdraw(api, 2)
    assert (refused.status_code, refused.json()["code"]) == (409, "would_reopen")
    assert "1 completed requests" in refused.json()["detail"]
    assert api.get(f"{VERSIONS}/latest").json()["version"] == 2
    assert withdraw(api, 2, reopen=True).status_code == 200
    assert [state(api, request) for request in two] == [("completed", 1), ("pending", None)]
    assert api.get(f"{VERSIONS}/latest").json()["version"] == api.get("/v1/models/tiny").json()["latest"] == 1
    publish_what_waits(services)
    assert [state(api, request) for request in two] == [("completed", 1), ("completed", 3)]
    assert api.get(f"{VERSIONS}/3").json()["parent"] == 1
    lineage = verify(release_folder(api, services, 3)).statement["predicate"]["lineage"]
    assert (lineage["version"], lineage["parent_version"]) == (3, 1)
    feed = api.get("/v1/models/tiny/supersedes", params={"after": 2}).json()["items"]
    assert [(item["version"], item["superseded_by"]) for item in feed] == [(1, 3)]
    assert first["id"] != second["id"]


def test_an_older_version_is_withdrawn_without_cost(api, services, two):
    """A later one fulfils its requests, too."""
    assert withdraw(api, 1).status_code == 200
    assert [state(api, request) for request in two] == [("completed", 1), ("completed", 2)]
    assert withdraw(api, 1).status_code == 409
    assert withdraw(api, 9).status_code == 404


def test_a_version_with_purged_requests_is_not_withdrawn_before_a_newer_one(api, services, two):
    """Their texts cannot be unlearned again, so whatever remains would remember them for ever."""
    services.settings.custody_days = 0
    assert purge_due(services) == 2
    refused = withdraw(api, 2, reopen=True)
    assert (refused.status_code, refused.json()["code"]) == (409, "texts_purged")
    published(api, services, "third")
    assert withdraw(api, 2).status_code == 200


def test_a_job_that_started_from_the_version_is_stopped(api, services, two):
    """Its requests are pending again, and its worker's lease is lost."""
    third = submit(api, records=[{"text": "third"}])
    job_id = batch_requests(services, only_model(services))
    assert withdraw(api, 2, reopen=True).status_code == 200
    job = api.get(f"/v1/jobs/{job_id}").json()
    assert (job["stage"], job["reason"]) == ("quarantined", "parent_withdrawn")
    assert state(api, third) == ("pending", None)
    publish_what_waits(services)
    assert [state(api, request) for request in (two[1], third)] == [("completed", 3)] * 2


def test_a_version_that_remembers_a_completed_request_is_for_auditors(api, services, two, new_key):
    """Files, archives and the hub: a key with `download` alone gets the newest; the policy may say otherwise."""
    plain = {"Authorization": f"Bearer {new_key('download')}"}
    auditor = {"Authorization": f"Bearer {new_key('download', 'audit')}"}
    paths = (
        "/v1/models/tiny/versions/{}/files/model/config.json",
        "/v1/models/tiny/versions/{}/archive.tar",
        "/hub/any/tiny/resolve/v{}/config.json",
        "/hub/api/models/any/tiny/revision/v{}",
    )
    for path in paths:
        old, new = path.format(1), path.format(2)
        assert api.get(old, headers=plain).status_code == (404 if "hub" in path else 403), path
        assert [api.get(new, headers=plain).status_code, api.get(old, headers=auditor).status_code] == [200, 200], path
    evidence = api.get("/v1/models/tiny/versions/1/files/certificate.dsse.json", headers=plain)
    assert evidence.status_code == 200
    with services.db.transaction() as session:
        models.by_name(session, "tiny").policy = {"serve_superseded": True}
    assert api.get(paths[0].format(1), headers=plain).status_code == 200


def test_a_restored_database_withdraws_again(api, services, two):
    """The backup was made before the withdrawal; storage's ledger remembers it, also if the process was killed then."""
    assert withdraw(api, 2, reopen=True).status_code == 200
    ledger = services.settings.storage_dir / "ledger" / "withdrawn" / "tiny" / "2"
    ledger.unlink()
    collect_garbage(services)
    assert ledger.read_text() == "faulty"
    publish_what_waits(services)
    services.storage.add_withdrawn("tiny", 3, "faulty")
    with services.db.transaction() as session:
        session.execute(update(Version).values(withdrawn_at=None))
    reconcile(services)
    assert state(api, two[1]) == ("pending", None)
    assert api.get(f"{VERSIONS}/latest").json()["version"] == 1
    withdrawn = api.get(VERSIONS).json()["items"]
    assert {v["version"] for v in withdrawn if v["withdrawn_at"]} == {2, 3}


def test_a_restored_database_opens_nothing_that_a_later_version_has_forgotten(api, services, model):
    """The version was withdrawn after its child was published, so its request stays completed."""
    published(api, services, "first")
    second = submit(api, records=[{"text": "second"}])
    copied = backup(services)
    publish_what_waits(services)
    published(api, services, "third")
    assert api.get(f"{VERSIONS}/3").json()["parent"] == 2
    assert withdraw(api, 2).status_code == 200
    restore(services, copied)
    assert handed_out(api) == [3, 1, 0]
    assert state(api, second) == ("completed", 2)


def test_a_restored_database_withdraws_before_it_adopts_what_came_later(api, services, two):
    """The version was withdrawn before the next one was made, which fulfils its request again."""
    copied = backup(services)
    assert withdraw(api, 2, reopen=True).status_code == 200
    publish_what_waits(services)
    restore(services, copied)
    assert handed_out(api) == [3, 1, 0]
    assert state(api, two[1]) == ("completed", 3)


def test_a_restored_database_withdraws_the_first_version_again(api, services, model):
    """Version 0 was registered, not published, and is withdrawn as any other."""
    published(api, services, "first")
    copied = backup(services)
    assert withdraw(api, 0).status_code == 200
    restore(services, copied)
    assert handed_out(api) == [1]


def test_who_was_told_completed_is_told_that_the_request_is_open_again(api, services, model):
    """By the same callback."""
    request = submit(api, callback_url="http://127.0.0.1:65000/")
    publish_what_waits(services)
    withdraw(api, 1, reopen=True)
    with services.db.reading() as session:
        statuses = list(session.scalars(select(Outbox.status).order_by(Outbox.created_at)))
    assert statuses == ["completed", "pending"]
    assert state(api, request) == ("pending", None)


def test_a_version_that_fulfilled_thousands_is_withdrawn_in_several_entries(api, services, two, as_process):
    """An entry of the log has room for some, and the API's own login may append the others."""
    grow(services, "tiny", requests=2100)
    with planting(), services.db.transaction() as session:
        session.execute(text("UPDATE deletion_requests SET status = 'completed', version = 2"))
    own = as_process("api")
    with own.db.reading() as session:
        key = session.scalar(select(ApiKey.id).limit(1))
    withdraw_version(own, "tiny", 2, "faulty", key, reopen=True)
    with services.db.reading() as session:
        entries = [json.loads(entry) for entry in log_entries.entries(session, 0, 9000)]
    named = [e.get("reopened") or e["refs"] for e in entries if e["kind"] in ("version.withdrawn", "requests.reopened")]
    assert [len(refs) for refs in named] == [1000, 1000, 102]
    assert len({ref for refs in named for ref in refs}) == 2102


def test_a_withdrawal_in_the_ledger_without_a_known_reason_is_not_believed(api, services, two):
    """Whoever else writes there withdraws nothing and puts no text into the log; the doctor tells the operator."""
    services.storage.add_withdrawn("tiny", 2, "Ada Adler owes 300 pounds")
    reconcile(services)
    assert api.get(f"{VERSIONS}/latest").json()["version"] == 2
    (finding,) = [finding for finding in examine(services) if finding.check == "ledger"]
    assert ("1 withdrawals" in finding.problem, "Ada" in finding.problem) == (True, False)


def test_every_reason_of_the_api_is_known_to_the_ledger():
    """Otherwise a restored database would hand such a version out again."""
    assert get_args(WithdrawalIn.model_fields["reason"].annotation) == WITHDRAWAL_REASONS
