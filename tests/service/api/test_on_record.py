"""Whoever changes something by hand is on record: the log's entry has the API key's id."""

import json

import pytest
from sqlalchemy import select

from service.db.log_tables import AuditEntry
from service.steps.path.batch import batch_requests
from tests.service.conftest import REQUESTS, only_model, submit
from tests.service.jobs import fail_what_waits, publish_what_waits


def last_entry(services) -> dict:
    """The newest entry of the log."""
    with services.db.reading() as session:
        return json.loads(session.scalars(select(AuditEntry.entry).order_by(AuditEntry.index.desc())).first())


def key_id(api) -> str:
    """The id of the calling API key."""
    return next(key["id"] for key in api.get("/v1/api-keys").json()["items"] if key["scopes"] == ["admin"])


def test_a_registration_names_its_api_key(api, services, model):
    """Who brought the model in."""
    entry = last_entry(services)
    assert (entry["kind"], entry["key"]) == ("model.registered", key_id(api))


@pytest.mark.parametrize(
    ("act", "kind"),
    [
        (lambda api, url: api.delete(url), "request.cancelled"),
        (lambda api, url: api.post(f"{url}/extend", json={"reason": "complexity"}), "request.extended"),
    ],
)
def test_a_change_of_a_request_names_its_api_key(api, services, model, act, kind):
    """The submitter, or somebody in its place."""
    assert act(api, f"{REQUESTS}/{submit(api)['id']}").status_code == 200
    entry = last_entry(services)
    assert (entry["kind"], entry["key"]) == (kind, key_id(api))


@pytest.mark.parametrize("reason", ["withdrawn", None])
def test_a_cancellation_gives_its_reason(api, services, model, reason):
    """In the request, and in the log; nobody has to give one, and none that may name a person."""
    url = f"{REQUESTS}/{submit(api)['id']}"
    assert api.delete(url, params={"reason": "J. Doe has called"}).status_code == 422
    assert api.delete(url, params={"reason": reason} if reason else {}).json()["reason"] == reason
    assert last_entry(services).get("reason") == reason


def test_a_retry_and_an_approval_give_their_reasons(api, services, model, new_key):
    """The approval's stands with who decided, too."""
    failed = f"{REQUESTS}/{submit(api)['id']}"
    fail_what_waits(services)
    assert api.post(f"{failed}/retry", params={"reason": "none"}).status_code == 422
    assert api.post(f"{failed}/retry", params={"reason": "policy_changed"}).json()["status"] == "pending"
    assert last_entry(services)["reason"] == "policy_changed"
    policy = api.get("/v1/models/tiny").json()["policy"] | {"approvals": 1}
    assert api.put("/v1/models/tiny/policy", json={"policy": policy, "policy_version": 1}).is_success
    url = f"{REQUESTS}/{submit(api)['id']}"
    approver = {"Authorization": f"Bearer {new_key('approve')}"}
    answer = api.post(f"{url}/approve", json={"reason": "person_confirmed"}, headers=approver).json()
    assert answer["decisions"][0]["reason"] == last_entry(services)["reason"] == "person_confirmed"


def assert_on_record(api, services, answer, kind: str) -> None:
    """The call worked, and the newest entry is of this kind and has the caller."""
    assert answer.is_success, answer.text
    entry = last_entry(services)
    assert (entry["kind"], entry["key"]) == (kind, key_id(api))


def test_an_operators_change_names_its_api_key(api, services, job):
    """A retry of a job and of a request, a withdrawal, a purge."""
    request, job_id = job
    api.post(f"/v1/jobs/{job_id}/cancel")
    assert_on_record(api, services, api.post(f"/v1/jobs/{job_id}/retry"), "request.retried")
    job_id = batch_requests(services, only_model(services))
    api.post(f"/v1/jobs/{job_id}/cancel")
    assert_on_record(api, services, api.post(f"{REQUESTS}/{request['id']}/retry"), "request.retried")
    publish_what_waits(services)
    withdrawal = api.post("/v1/models/tiny/versions/0/withdraw", json={"reason": "faulty"})
    assert_on_record(api, services, withdrawal, "version.withdrawn")
    assert_on_record(api, services, api.post(f"{REQUESTS}/{request['id']}/purge"), "request.purged")
