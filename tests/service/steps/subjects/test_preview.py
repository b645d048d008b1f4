"""Previews: who may ask, how much and how many at once; and what a submitter learns about the training data."""

import hashlib
import uuid

import pytest
from fastapi.testclient import TestClient

from service.db import api_keys
from service.main import create_app
from service.steps.path.batch import batch_requests
from service.steps.subjects import preview as preview_module
from service.subjects import search
from service.subjects.readers import CorpusReader
from tests.service.conftest import only_model
from tests.service.jobs import claim
from tests.service.steps.subjects.corpus import (
    ADDRESS,
    COPY,
    HERS,
    NAMESAKE,
    REQUESTS,
    SOMEBODY_ELSES,
    by_email,
    corpus_body,
    fill,
    resolve,
    texts_in,
)

PREVIEW = REQUESTS + ":preview"
BODY = {"model": "tiny", "subject": {**by_email(), "names": ["Maria Example"]}}


@pytest.fixture
def bearer(new_key):
    """The headers of a new API key with these scopes."""
    return lambda *scopes: {"Authorization": f"Bearer {new_key(*scopes)}"}


@pytest.mark.parametrize("scopes", [["submit"], ["read"], ["submit", "read", "download", "audit"]], ids="+".join)
def test_no_other_scope_may_ask_who_is_in_the_corpora(api, filled, bearer, scopes):
    """A preview is an answer about a person that leaves no request behind."""
    answer = api.post(PREVIEW, json=BODY, headers=bearer(*scopes))
    assert (answer.status_code, answer.json()["detail"]) == (403, "This needs the scope preview or approve.")


def test_a_preview_counts_and_shows_texts_to_approvers_alone(api, filled, bearer):
    """And makes no request."""
    preview = api.post(PREVIEW, json=BODY, headers=bearer("preview")).json()
    assert preview["counts"] == {"identifier": 2, "near_copy": 1, "similar": 0, "name": 2, "form_letter": 0}
    assert (preview["needs_approval"], preview["matches"]) == (True, None)
    assert preview["searched"] == [{"corpus": "crm", "records": len(filled)}]
    shown = api.post(PREVIEW, json=BODY, headers=bearer("approve")).json()
    assert {match["text"] for match in shown["matches"]} == {*HERS, COPY, SOMEBODY_ELSES, NAMESAKE}
    assert api.get(REQUESTS).json()["items"] == []  # it made no request


def test_a_preview_says_when_a_request_would_be_batched(api, services, filled, bearer):
    """With the job that waits, or after the one that runs."""
    seen = [api.post(PREVIEW, json=BODY, headers=bearer("preview")).json()["batch"]]
    api.post(REQUESTS, json={"model": "tiny", "records": [{"text": "a record"}]})
    job_id = batch_requests(services, only_model(services))
    seen.append(api.post(PREVIEW, json=BODY, headers=bearer("preview")).json()["batch"])
    claim(services, job_id)
    seen.append(api.post(PREVIEW, json=BODY, headers=bearer("preview")).json()["batch"])
    assert seen == [
        "within 0 s",
        "with the job that waits for a worker, if it has room",
        "after the job that is running",
    ]


def test_a_key_previews_so_many_identities_a_minute_and_another_key_as_many(services, new_key):
    """Identities count, not calls; what is refused is not counted; the database counts for all processes."""
    with services.db.transaction() as session:  # one transaction has one time, so no minute ends in between
        first, second = (api_keys.create(session, name, ["preview"])[0].id for name in ("a", "b"))
        counted = [api_keys.count_preview(session, first, count, 10) for count in (4, 4, 4, 2, 1)]
        assert counted == [True, True, False, True, False]
        assert api_keys.count_preview(session, second, 10, 10)


def test_who_previews_too_much_is_told_when_to_come_back(services, api, filled, bearer):
    """In a second process of the API as in the first."""
    services.settings.previews_per_minute = 1
    headers = bearer("preview")
    with TestClient(create_app(services)) as other:
        for client in (api, other):
            answer = client.post(PREVIEW, json=BODY, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (429, "too_many")
            assert 1 <= int(answer.headers["retry-after"]) <= 60


def test_a_preview_is_of_one_person_and_not_of_a_list(api, filled, bearer):
    """A request may name more."""
    subject = {"identities": [{"type": "email", "value": f"p{n}@example.org"} for n in range(10)], "names": ["Maria"]}
    answer = api.post(PREVIEW, json={"model": "tiny", "subject": subject}, headers=bearer("preview"))
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "subject")
    assert api.post(REQUESTS, json={"model": "tiny", "subject": subject}).status_code == 202


def test_a_few_previews_run_at_once_and_more_are_refused(api, filled, bearer):
    """So that previews never take all threads and connections of a process."""
    for _ in range(2):
        assert preview_module.SLOTS.acquire(blocking=False)
    try:
        answer = api.post(PREVIEW, json=BODY, headers=bearer("preview"))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    finally:
        preview_module.SLOTS.release(2)
    assert api.post(PREVIEW, json=BODY, headers=bearer("preview")).status_code == 200


def test_no_connection_is_held_while_files_are_read(services, api, filled, bearer, monkeypatch):
    """A slow disk takes nobody's place in the pool, neither in a preview nor in a request nor for an approver."""
    held, read = [], CorpusReader.read

    def reading(reader, place):
        held.append(services.db.engine.pool.checkedout())
        return read(reader, place)

    monkeypatch.setattr(CorpusReader, "read", reading)
    assert api.post(PREVIEW, json=BODY, headers=bearer("approve")).status_code == 200
    request = api.post(REQUESTS, json=BODY).json()
    resolve(services, request["id"])
    assert len(api.get(f"{REQUESTS}/{request['id']}/matches", headers=bearer("approve")).json()) == 5
    assert len(held) > 10
    assert set(held) == {0}


def test_a_preview_ends_though_it_would_match_half_the_corpus(api, filled, bearer, monkeypatch):
    """It reads so many texts and no more."""
    monkeypatch.setattr(preview_module, "MAX_TEXTS", 1)
    answer = api.post(PREVIEW, json=BODY, headers=bearer("preview"))
    assert (answer.status_code, "too_many_matches" in answer.json()["detail"]) == (409, True)


def test_a_submitter_learns_whether_a_search_has_matched_and_not_how_much(services, api, filled, bearer):
    """In its own requests, their list, and a repeated submission; approvers and auditors see the number."""
    headers, key = bearer("submit", "read"), {"Idempotency-Key": "k"}
    request = api.post(REQUESTS, json={"model": "tiny", "subject": by_email()}, headers={**headers, **key}).json()
    nobody = api.post(REQUESTS, json={"model": "tiny", "subject": by_email("no@example.org")}, headers=headers).json()
    resolve(services, request["id"])
    resolve(services, nobody["id"])
    again = api.post(REQUESTS, json={"model": "tiny", "subject": by_email()}, headers={**headers, **key}).json()
    listed = {item["id"]: item for item in api.get(REQUESTS, headers=headers).json()["items"]}
    for shown in (again, listed[request["id"]], api.get(f"{REQUESTS}/{request['id']}", headers=headers).json()):
        assert (shown["records"], shown["results_count"]) == (0, None)
    assert (listed[nobody["id"]]["records"], listed[nobody["id"]]["results_count"]) == (0, 0)
    for scope in ("approve", "audit", "admin"):
        exact = api.get(f"{REQUESTS}/{request['id']}", headers=bearer(scope, "read")).json()
        assert (exact["records"], exact["results_count"]) == (3, 3)
    assert len(texts_in(services, request["id"])) == 3


def test_an_opendsr_controller_learns_no_more(services, api, filled, bearer):
    """Its `results_count` is 0 or absent."""
    controller, counts = bearer("submit"), []
    for address in ("no@example.org", ADDRESS):
        body = {
            "regulation": "gdpr",
            "subject_request_id": str(uuid.uuid4()),
            "subject_request_type": "erasure",
            "submitted_time": "2026-11-20T10:00:00Z",
            "subject_identities": [{"identity_type": "email", "identity_value": address, "identity_format": "raw"}],
        }
        assert api.post("/v2/requests", json=body, headers=controller).status_code == 201
        (newest, *_) = api.get(REQUESTS).json()["items"]
        resolve(services, newest["id"])
        counts.append(api.get(f"/v2/requests/{body['subject_request_id']}", headers=controller).json())
    assert (counts[0]["request_status"], counts[0]["results_count"]) == ("completed", 0)
    assert counts[1].get("results_count") is None


def notes(count: int, address: str) -> list[str]:
    """Texts with an address that are no copies of each other."""
    return [f"{hashlib.sha256(f'{address} {n}'.encode()).hexdigest()} {address}" for n in range(count)]


@pytest.mark.parametrize(
    ("hers", "others", "waits"),
    [(20, 30, None), (21, 2200, None), (25, 2200, "approval"), (201, 0, "approval")],
    ids=["few of few", "under the share", "over the share", "over the count"],
)
def test_an_address_that_stands_in_very_many_records_is_not_certain(
    services, api, model, tmp_path, monkeypatch, hers, others, waits
):
    """A shop's address, or one that an attacker has picked: somebody has to look before so much is unlearned."""
    if others == 0:
        monkeypatch.setattr(search, "FEW_MATCHES", 10_000)  # the count alone
    fill(services, api, model, corpus_body(tmp_path, [*notes(hers, ADDRESS), *notes(others, "b@example.net")]))
    assert api.post(PREVIEW, json={"model": model, "subject": by_email()}).json()["needs_approval"] == bool(waits)
    request = api.post(REQUESTS, json={"model": model, "subject": by_email()}).json()
    resolve(services, request["id"])
    assert api.get(f"{REQUESTS}/{request['id']}").json()["waits_for"] == waits
    assert len(texts_in(services, request["id"])) == (0 if waits else hers)
