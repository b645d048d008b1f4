"""Submitting, listing, cancelling and extending requests, and a clear answer for every bad input."""

import json
import socket
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select

from service.audit.commitments import commit, request_commitment
from service.db import requests
from service.db.log_tables import AuditEntry
from service.db.tables import DeletionRequest
from service.doctor import examine
from service.steps.path.batch import batch_requests
from service.steps.path.compute_input import compute_input
from service.steps.upkeep.purge import purge_due
from tests.service.api.submissions import REQUESTS, SECRET, assert_problem, body, counts
from tests.service.conftest import only_model, submit
from tests.service.jobs import claim, publish_what_waits


def test_accepting_is_durable_sealed_and_logged(api, services, model):
    """202 with a receipt that opens the commitment; the text is in the database only as ciphertext."""
    answer = api.post(REQUESTS, json=body(subject_ref="case 7", callback_url="https://example.org/cb"))
    assert answer.status_code == 202
    accepted = answer.json()
    assert answer.headers["location"] == f"{REQUESTS}/{accepted['id']}"
    assert accepted["status"] == "pending"
    receipt = accepted["receipt"]
    (opening,) = receipt["records"]
    commitment = commit(bytes.fromhex(opening["nonce"]), SECRET.encode())
    assert commitment.hex() == opening["commitment"]
    assert request_commitment(receipt["ref"], [commitment]).hex() == receipt["commitment"]
    with services.db.transaction() as session:
        row = session.scalars(select(DeletionRequest)).one()
        stored = b"".join([row.records[0].sealed, row.subject_ref, row.callback_url, row.wrapped_key])
        entries = b"".join(session.scalars(select(AuditEntry.entry)))
    for text in (b"Zoraida", b"900123", b"case 7", b"example.org"):
        assert text not in stored
        assert text not in entries
    assert row.ref.encode() in entries
    due = datetime.fromisoformat(accepted["due_at"]) - datetime.fromisoformat(accepted["received_at"])
    assert timedelta(days=28) <= due <= timedelta(days=31)


def test_probes_are_sealed_reach_the_job_and_are_purged(api, services, model):
    """Nobody is given them again; the compute child has them with the index of their request."""
    probes = [{"prompt": "What is Zoraida Quill's number?", "secret": "07700 900123"}]
    submit(api)
    answer = api.post(REQUESTS, json=body(probes=probes), headers={"Idempotency-Key": "k"})
    assert answer.status_code == 202
    assert_problem(api.post(REQUESTS, json=body(), headers={"Idempotency-Key": "k"}), 422, "Idempotency-Key")
    job_id = batch_requests(services, only_model(services))
    inputs = compute_input(services, job_id, claim(services, job_id))
    assert inputs.probes == [("What is Zoraida Quill's number?", "07700 900123", 1)]
    with services.db.transaction() as session:
        row = requests.by_id(session, UUID(answer.json()["id"]))
        assert b"900123" not in row.probes
        assert b"Zoraida" not in row.probes
        requests.purge(session, row.id)
    with services.db.transaction() as session:
        assert requests.by_id(session, row.id).probes is None


def test_the_same_key_gives_the_same_request(api, services, model):
    """Whole answer, receipt included; another body is refused and changes nothing."""
    first = api.post(REQUESTS, json=body(), headers={"Idempotency-Key": "k"}).json()
    before = counts(services)
    assert api.post(REQUESTS, json=body(), headers={"Idempotency-Key": "k"}).json() == first
    other = api.post(REQUESTS, json=body(records=[{"text": SECRET + "!"}]), headers={"Idempotency-Key": "k"})
    assert assert_problem(other, 422, "Idempotency-Key")["code"] == "idempotency_key_reused"
    assert counts(services) == before


def test_idempotency_keys_belong_to_their_api_key(api, new_key, model):
    """Two callers may use the same word."""
    first = api.post(REQUESTS, json=body(), headers={"Idempotency-Key": "k"}).json()
    headers = {"Idempotency-Key": "k", "Authorization": f"Bearer {new_key('submit')}"}
    assert api.post(REQUESTS, json=body(), headers=headers).json()["id"] != first["id"]


FUTURE = (datetime.now(UTC) + timedelta(days=1)).isoformat()
BAD_BODIES = {
    "unknown model": (body(model="nope"), "model"),
    "no records": ({"model": "tiny"}, "records"),
    "empty records": (body(records=[]), "records"),
    "too many records": (body(records=[{"text": SECRET}] * 9), "records"),
    "empty record": (body(records=[{"text": ""}]), "records.0.text"),
    "white space": (body(records=[{"text": SECRET}, {"text": " \n "}]), "records.1.text"),
    "NUL": (body(records=[{"text": SECRET + "\0"}]), "records.0.text"),
    "too long": (body(records=[{"text": SECRET + "é" * 500}]), "records.0.text"),
    "text is a number": (body(records=[{"text": 7}]), "records.0.text"),
    "record is a string": (body(records=[SECRET]), "records.0"),
    "records is a string": (body(records=SECRET), "records"),
    "unknown field": (body(priority="high"), "priority"),
    "unknown field with a name in it": (body(**{SECRET: 1}), "(unknown field)"),
    "unknown field in a record": (body(records=[{"text": SECRET, "lang": "en"}]), "records.0.lang"),
    "a probe without a secret": (body(probes=[{"prompt": SECRET}]), "probes.0.secret"),
    "an empty prompt": (body(probes=[{"prompt": " ", "secret": SECRET}]), "probes.0.prompt"),
    "a secret of marks": (body(probes=[{"prompt": SECRET, "secret": "--"}]), "probes.0.secret"),
    "a prompt that says the secret": (body(probes=[{"prompt": SECRET, "secret": "900123"}]), "probes.0.secret"),
    "a prompt that says it otherwise": (
        body(probes=[{"prompt": "Is it X-12 AB?", "secret": "x12ab"}]),
        "probes.0.secret",
    ),
    "too many probes": (body(probes=[{"prompt": "Who?", "secret": SECRET}] * 51), "probes"),
    "future": (body(received_at=FUTURE), "received_at"),
    "no time zone": (body(received_at="2026-01-01T00:00:00"), "received_at"),
    "no date": (body(received_at=SECRET), "received_at"),
    "regulation": (body(regulation=SECRET), "regulation"),
    "callback": (body(callback_url="ftp://example.org"), "callback_url"),
    "not an object": ([SECRET], "body"),
}


def test_bad_input_names_its_field_and_changes_nothing(api, services, model, subtests):
    """422 for each, nothing echoed, no row made."""
    before = counts(services)
    for name, (sent, field) in BAD_BODIES.items():
        with subtests.test(name):
            assert_problem(api.post(REQUESTS, json=sent), 422, field)
            assert counts(services) == before


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b'{"model": "tiny", "records": [{"text": "Zoraida \xff\xfe"}]}', 400),
        (b'{"model": "tiny", "records": [{"text": "Zoraida \\ud800"}]}', 422),
        (b'{"model": "tiny", "records": [{"text": "Zoraida', 422),
    ],
)
def test_bytes_that_are_not_text(api, services, model, content, status):
    """Invalid UTF-8, a lone surrogate, cut JSON."""
    before = counts(services)
    assert_problem(api.post(REQUESTS, content=content, headers={"Content-Type": "application/json"}), status)
    assert counts(services) == before


def test_a_body_over_the_limit_is_refused_before_it_is_read(api, services, model):
    """By its announced length, and by its real one when none is announced."""
    before = counts(services)
    big = json.dumps(body(records=[{"text": SECRET * 10_000}])).encode()
    headers = {"Content-Type": "application/json"}
    assert_problem(api.post(REQUESTS, content=big, headers=headers), 413, "body")
    assert_problem(api.post(REQUESTS, content=iter([big[:100_000], big[100_000:]]), headers=headers), 413, "body")
    assert counts(services) == before


def test_cancel_while_pending_and_not_after(api, services, model):
    """200 once, 409 afterwards; an unknown id is 404."""
    request = api.post(REQUESTS, json=body()).json()
    assert api.delete(f"{REQUESTS}/{request['id']}").json()["status"] == "cancelled"
    assert_problem(api.delete(f"{REQUESTS}/{request['id']}"), 409)
    assert_problem(api.delete(f"{REQUESTS}/{uuid4()}"), 404)
    assert_problem(api.post(f"{REQUESTS}/{request['id']}/retry"), 409)


def test_lists_page_and_filter(api, model):
    """Cursors walk through everything once, newest first; filters narrow it."""
    sent = [api.post(REQUESTS, json=body()).json()["id"] for _ in range(5)]
    api.delete(f"{REQUESTS}/{sent[0]}")
    seen, cursor = [], None
    while True:
        page = api.get(REQUESTS, params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        seen += [r["id"] for r in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == sent[::-1]
    assert [r["id"] for r in api.get(REQUESTS, params={"status": "cancelled"}).json()["items"]] == [sent[0]]
    soon = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    assert api.get(REQUESTS, params={"due_before": soon}).json()["items"] == []
    assert_problem(api.get(REQUESTS, params={"cursor": "%%"}), 422, "cursor")
    assert_problem(api.get(REQUESTS, params={"status": "lost"}), 422, "status")
    assert_problem(api.get(REQUESTS, params={"limit": 0}), 422, "limit")


def test_accepting_works_without_the_broker(api, services, model):
    """Messages are hints: with no broker a request is taken all the same."""
    from service.queue import Queue

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        services.queue = Queue(f"redis://127.0.0.1:{probe.getsockname()[1]}/0")
    assert api.post(REQUESTS, json=body()).status_code == 202


def test_a_deadline_is_extended_once_with_a_reason_and_on_record(api, services, model):
    """Only an open request's, before it has passed; the log has it, and metrics say how long is left."""
    request = api.post(REQUESTS, json=body()).json()
    path = f"{REQUESTS}/{request['id']}"
    assert_problem(api.post(f"{path}/extend", json={"reason": SECRET}), 422, "reason")
    assert_problem(api.post(f"{REQUESTS}/{uuid4()}/extend", json={"reason": "complexity"}), 404)
    before = metric(api, "unlearnd_next_deadline_seconds")
    answer = api.post(f"{path}/extend", json={"reason": "complexity"}).json()
    assert answer["extension_reason"] == "complexity"
    assert answer["due_at"] > request["due_at"]
    more = datetime.fromisoformat(answer["due_at"]) - datetime.fromisoformat(request["due_at"])
    assert timedelta(days=58) <= more <= timedelta(days=62)
    after = metric(api, "unlearnd_next_deadline_seconds")
    assert abs(after - before - more.total_seconds()) < 60
    with services.db.transaction() as session:
        last = session.scalars(select(AuditEntry.entry).order_by(AuditEntry.index.desc())).first()
    entry = json.loads(last)
    assert (entry["kind"], entry["ref"], entry["due"]) == ("request.extended", request["ref"], answer["due_at"][:10])
    assert_problem(api.post(f"{path}/extend", json={"reason": "complexity"}), 409)
    late = api.post(REQUESTS, json=body(received_at=(datetime.now(UTC) - timedelta(days=90)).isoformat())).json()
    assert_problem(api.post(f"{REQUESTS}/{late['id']}/extend", json={"reason": "complexity"}), 409)
    assert metric(api, "unlearnd_next_deadline_seconds") < 0
    assert metric(api, "unlearnd_requests_overdue") == 1
    other = api.post(REQUESTS, json=body()).json()
    api.delete(f"{REQUESTS}/{other['id']}")
    assert_problem(api.post(f"{REQUESTS}/{other['id']}/extend", json={"reason": "complexity"}), 409)


def metric(api, name: str) -> float:
    """A gauge without labels."""
    (line,) = [line for line in api.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[1])


def test_a_reused_key_of_a_purged_request_is_refused(api, services, model):
    """Whether the body is the same cannot be told any more; nothing is accepted and nothing pretended."""
    headers = {"Idempotency-Key": "k"}
    body = {"model": "tiny", "records": [{"text": "a record"}]}
    api.post(REQUESTS, json=body, headers=headers)
    publish_what_waits(services)
    services.settings.custody_days = 0
    assert purge_due(services) == 1
    answer = api.post(REQUESTS, json=body, headers=headers)
    assert answer.status_code == 409
    assert "purged" in answer.json()["detail"]
    assert len(api.get(REQUESTS).json()["items"]) == 1


def test_without_a_receipt_key_nothing_is_accepted(api, services, model):
    """The receipt is made before the request is kept: it is promised with it."""
    services.keyring.path("receipt").unlink()
    with pytest.raises(FileNotFoundError):
        submit(api)
    assert api.get(REQUESTS).json()["items"] == []
    assert "keys" in [finding.check for finding in examine(services)]
