"""Whoever changes something by hand is on record: the log's entry has the API key's id."""

import json

import pytest
from sqlalchemy import select

from service.db.log_tables import AuditEntry
from service.steps.path.batch import batch_requests
from tests.service.conftest import REQUESTS, only_model, submit
from tests.service.jobs import publish_what_waits


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
