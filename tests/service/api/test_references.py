"""The submitter's case number: sealed, returned, a filter, and gone with the rest of the request."""

import pytest
from sqlalchemy import select, text

from service.db.log_tables import AuditEntry
from service.db.tables import DeletionRequest
from service.steps.upkeep.purge import purge_due
from tests.service.api.submissions import REQUESTS, assert_problem, body
from tests.service.jobs import publish_what_waits

CASE = "case 7/2026 Zoraida"


def references(api, **filters) -> list[str | None]:
    """The references of a list."""
    answer = api.get(REQUESTS, params=filters)
    assert answer.status_code == 200, answer.text
    return [item["reference"] for item in answer.json()["items"]]


def test_a_reference_is_returned_and_nowhere_readable(api, services, model):
    """It is in the answer, in the request and in the list; in no column and no log entry."""
    accepted = api.post(REQUESTS, json=body(reference=CASE)).json()
    assert accepted["reference"] == CASE
    assert api.get(f"{REQUESTS}/{accepted['id']}").json()["reference"] == CASE
    assert api.post(REQUESTS, json=body()).json()["reference"] is None
    assert references(api) == [None, CASE]
    with services.db.transaction() as session:
        row = (
            session.execute(text("SELECT row_to_json(d)::text FROM deletion_requests d ORDER BY seq")).scalars().first()
        )
        entries = b"".join(session.scalars(select(AuditEntry.entry)))
    assert CASE not in row
    assert CASE.encode().hex() not in row
    assert CASE.encode() not in entries


def test_a_reference_is_a_filter(api, new_key, model):
    """The submitter finds its own request, whoever sees all requests finds those of all submitters."""
    own = {"Authorization": f"Bearer {new_key('submit')}"}
    api.post(REQUESTS, json=body(reference=CASE))
    mine = api.post(REQUESTS, json=body(reference=CASE), headers=own).json()
    api.post(REQUESTS, json=body(reference="another"), headers=own)
    assert references(api, reference=CASE) == [CASE, CASE]
    assert references(api, reference="nothing") == []
    answer = api.get(REQUESTS, params={"reference": CASE}, headers=own).json()
    assert [item["id"] for item in answer["items"]] == [mine["id"]]


def test_the_hashes_of_two_submitters_differ(api, services, new_key, model):
    """The database does not show that two submitters use the same reference."""
    for key in (new_key("submit"), new_key("submit")):
        api.post(REQUESTS, json=body(reference=CASE), headers={"Authorization": f"Bearer {key}"})
    with services.db.reading() as session:
        first, second = session.scalars(select(DeletionRequest.reference_hash))
    assert first != second


def test_purge_takes_the_reference_and_its_hash(api, services, model):
    """Nothing answers to the case number any more."""
    request = api.post(REQUESTS, json=body(reference=CASE)).json()
    publish_what_waits(services)
    services.settings.custody_days = 0
    assert purge_due(services) == 1
    assert api.get(f"{REQUESTS}/{request['id']}").json()["reference"] is None
    assert references(api, reference=CASE) == []
    with services.db.reading() as session:
        row = session.scalars(select(DeletionRequest)).one()
    assert (row.reference, row.reference_hash) == (None, None)


def test_a_reference_belongs_to_the_body_of_an_idempotency_key(api, model):
    """The same key with another reference is another body."""
    headers = {"Idempotency-Key": "k"}
    first = api.post(REQUESTS, json=body(reference=CASE), headers=headers).json()
    assert api.post(REQUESTS, json=body(reference=CASE), headers=headers).json() == first
    for changed in (body(reference="another"), body()):
        assert_problem(api.post(REQUESTS, json=changed, headers=headers), 422, "Idempotency-Key")


@pytest.mark.parametrize("reference", ["", CASE + "x" * 200, CASE + "\0", 7])
def test_a_bad_reference_is_named(api, model, reference):
    """Empty, too long, with a NUL, not a string."""
    assert_problem(api.post(REQUESTS, json=body(reference=reference)), 422, "reference")


@pytest.mark.parametrize("path", [REQUESTS, "/v1/jobs"])
def test_a_list_of_an_unknown_model_is_an_error(api, model, path):
    """A misspelled name must not look like an empty list."""
    assert assert_problem(api.get(path, params={"model": "tinny"}), 422, "model")["code"] == "unknown_model"
    assert api.get(path, params={"model": model}).json()["items"] == []
