"""Purging destroys keys, what they sealed, and the exact means of few."""

from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select, text, update

from service.audit.commitments import commit
from service.audit.verify import verify
from service.db import requests
from service.db.callback_lanes import MAX_AGE
from service.db.tables import DeletionRequest, Job, Outbox, Record, Version
from service.domain.errors import NotFound
from service.privacy.records import open_records
from service.steps.path.batch import batch_requests
from service.steps.path.unlearn import store_thresholds
from service.steps.upkeep.purge import purge_due, purge_request, purge_restored
from tests import status_door
from tests.service.conftest import REQUESTS, logged, only_model, submit
from tests.service.jobs import (
    REPORT,
    baseline,
    claim,
    fail_what_waits,
    plant_callback_given_up,
    publish_what_waits,
    published,
    release_folder,
)


def test_texts_of_a_purged_request_can_be_tested_again(api, services, model):
    """With the nonces of the receipt: the new request's record names the old one; others do not do."""
    first = published(api, services, "a record")
    services.settings.custody_days = 0
    assert purge_due(services) == 1
    (opening,) = first["receipt"]["records"]
    good = {"ref": first["ref"], "nonces": [opening["nonce"]]}
    for changes in (
        {"records": [{"text": "a record "}]},
        {"resubmits": {**good, "nonces": ["0" * 64]}},
        {"resubmits": {**good, "ref": "0" * 32}},
        {"resubmits": {**good, "nonces": [*good["nonces"], "0" * 64]}},
        {"model": "other"},
    ):
        body = {"model": "tiny", "records": [{"text": "a record"}], "resubmits": good, **changes}
        answer = api.post(REQUESTS, json=body)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "resubmits"
    for malformed in ({**good, "ref": "x"}, {**good, "nonces": ["x"]}, {**good, "nonces": []}, {"ref": first["ref"]}):
        answer = api.post(REQUESTS, json={"model": "tiny", "records": [{"text": "a record"}], "resubmits": malformed})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"].startswith("resubmits")
    again = submit(api, resubmits=good)
    assert again["ref"] != first["ref"]
    publish_what_waits(services)
    (line,) = verify(release_folder(api, services, 2)).statement["predicate"]["requests"]
    assert (line["ref"], line["supplements"]) == (again["ref"], first["ref"])
    assert [e.get("supplements") for e in logged(services) if e["kind"] == "request.accepted"] == [None, first["ref"]]
    with services.db.reading() as session:  # what is left of the purged one opens nothing
        row = session.scalar(select(DeletionRequest).where(DeletionRequest.ref == first["ref"]))
    assert row.wrapped_key is None
    assert commit(bytes.fromhex(opening["nonce"]), b"a record").hex() == opening["commitment"]


def test_numbers_of_few_requests_go_with_their_texts(api, services, model):
    """After a purge no row tells an exact mean of a job of one: not the job, its events, or the version."""
    request = published(api, services, "a record")
    services.settings.custody_days = 0
    places = [f"/v1/jobs/{request['job_id']}", f"/v1/jobs/{request['job_id']}/events", "/v1/models/tiny/versions/1"]
    assert any(f'"ma":{REPORT["before"]["ma"]}' in api.get(p).text.replace(" ", "") for p in places)
    assert purge_due(services) == 1
    for place in places:
        for mean in (REPORT["before"]["ma"], REPORT["after"]["ma"]):
            assert f'"ma":{mean}' not in api.get(place).text.replace(" ", "")
    with services.db.reading() as session:
        rows = [session.get(Job, request["job_id"]), session.scalar(select(Version).where(Version.number == 1))]
        assert rows[0].report.findings.before is None
        assert {e.ma for e in rows[0].report.findings.trajectory} == {None}
        assert rows[1].metrics.after is None
    assert api.get("/v1/models/tiny/versions/1").json()["metrics"]["utility"]


def test_numbers_of_jobs_that_a_request_has_left_go_too(api, services, model):
    """One job failed, the next was given up in the middle, a third published it."""
    request = submit(api)
    failed = UUID(fail_what_waits(services))
    assert api.post(f"/v1/jobs/{failed}/retry").is_success
    given_up = batch_requests(services, only_model(services))
    store_thresholds(services, given_up, claim(services, given_up), baseline(REPORT))
    assert api.post(f"/v1/jobs/{given_up}/cancel").json()["stage"] == "quarantined"
    other = published(api, services, "of somebody else")
    with services.db.reading() as session:
        before = session.get(Job, given_up).metrics["before"]
        assert before["ma"] == session.get(Job, failed).report.findings.before.ma == REPORT["before"]["ma"]
    purge_request(services, UUID(other["id"]), uuid4())
    with services.db.reading() as session:
        assert session.get(Job, given_up).metrics["before"] == before  # its request has not left it
    assert api.post(f"/v1/jobs/{given_up}/retry").is_success
    publish_what_waits(services)
    state = api.get(f"{REQUESTS}/{request['id']}").json()
    assert state["status"] == "completed"
    assert state["job_id"] not in {str(failed), str(given_up), other["job_id"]}
    purge_request(services, UUID(request["id"]), uuid4())
    with services.db.reading() as session:
        assert session.get(Job, failed).report.findings.before is None
        assert session.get(Job, given_up).metrics["before"] is None


def test_purging_destroys_the_key_and_what_it_sealed(api, services, model):
    """After the window, not before; later if it failed; the ledger has it."""
    request = published(api, services, "a record")
    failed = submit(api)
    with status_door.planting(), services.db.transaction() as session:
        kept = session.scalar(select(DeletionRequest.wrapped_key).where(DeletionRequest.id == request["id"]))
        session.execute(
            update(DeletionRequest)
            .where(DeletionRequest.id == failed["id"])
            .values(status="failed", finished_at=func.now() - timedelta(days=170))
        )
    assert purge_due(services) == 0
    services.settings.custody_days = 0
    assert purge_due(services) == 1
    assert purge_due(services) == 0
    with services.db.transaction() as session:
        row = requests.by_id(session, request["id"])
        assert row.wrapped_key is None
        assert kept is not None
        assert session.scalar(select(func.count()).where(Record.request_id == request["id"])) == 0
        assert requests.by_id(session, failed["id"]).wrapped_key is not None
    services.settings.failed_custody_days = 160
    assert purge_due(services) == 1
    assert {str(i) for i in services.storage.purged()} == {request["id"], failed["id"]}
    with pytest.raises(NotFound):
        open_records(services.wrapper, row)
    assert api.get(f"{REQUESTS}/{request['id']}").json()["status"] == "completed"


def test_a_callback_that_waits_keeps_the_texts_and_one_given_up_does_not(api, services, model):
    """Its address is sealed with the same key."""
    services.settings.custody_days = 0
    request = submit(api, callback_url="http://127.0.0.1:65000/")
    api.delete(f"{REQUESTS}/{request['id']}")
    assert purge_due(services) == 0
    plant_callback_given_up(services)
    assert purge_due(services) == 1


def test_no_callback_keeps_the_texts_for_ever(api, services, model):
    """Its own attempts would have ended by then, so something is wrong with it."""
    services.settings.custody_days = 0
    request = submit(api, callback_url="http://127.0.0.1:65000/")
    api.delete(f"{REQUESTS}/{request['id']}")
    with services.db.transaction() as session:
        session.execute(update(Outbox).values(next_at=text("'infinity'"), created_at=text("'infinity'")))
    assert purge_due(services) == 0
    with status_door.planting(), services.db.transaction() as session:
        session.execute(update(DeletionRequest).values(finished_at=func.now() - MAX_AGE))
    assert purge_due(services) == 1


def test_a_crash_while_the_ledger_is_written_stops_nothing(api, services, model):
    """What it leaves is no entry, and is written over."""
    request = published(api, services, "a record")
    folder = services.settings.storage_dir / "ledger" / "purged"
    (folder / f".{request['id']}").write_text("")
    assert services.storage.purged() == []
    services.settings.custody_days = 0
    assert purge_due(services) == 1
    assert [str(i) for i in services.storage.purged()] == [request["id"]]


def test_the_ledger_may_be_longer_than_a_statement_has_parameters(services):
    """PostgreSQL takes 65,535 of them."""
    with services.db.reading() as session:
        assert requests.unpurged(session, [uuid4() for _ in range(70_000)]) == []


def test_a_purged_request_that_a_backup_takes_for_pending_holds_nobody_up(api, services, model):
    """It had ended, or it would not have been purged: it ends, and others are batched without it."""
    gone, other = submit(api), submit(api)
    services.storage.add_purged(UUID(gone["id"]), None)
    assert purge_restored(services) == [UUID(gone["id"])]
    state = api.get(f"{REQUESTS}/{gone['id']}").json()
    assert (state["status"], state["reason"]) == ("failed", "restored")
    refused = api.post(f"{REQUESTS}/{gone['id']}/retry")
    assert (refused.status_code, "purged" in refused.json()["detail"]) == (409, True)  # it would be pending for ever
    assert batch_requests(services, only_model(services))
    assert api.get(f"{REQUESTS}/{other['id']}").json()["status"] == "batched"
