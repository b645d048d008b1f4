"""From an identity to a forget set, over HTTP and on a real database; the steps are called as workers call them."""

import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, text

from service.audit.canonical import dumps
from service.audit.commitments import commit
from service.db import corpora, log_entries, requests
from service.db.tables import DeletionRequest, Outbox
from service.doctor import examine
from service.domain.disclosure import count_range
from service.steps.path.batch import batch_requests
from service.steps.subjects import resolve as resolve_module
from service.steps.subjects.index import index_corpus
from service.steps.upkeep.purge import purge_due
from service.steps.upkeep.sweep import wake_lost_work
from tests.service.jobs import fail_what_waits
from tests.service.steps.subjects.corpus import (
    ADDRESS,
    COPY,
    HERS,
    REQUESTS,
    by_email,
    corpus_body,
    fill,
    resolve,
    submit,
    texts_in,
    the_model_id,
)


@pytest.mark.parametrize(
    "subject",
    [
        by_email(),
        by_email(" Maria.EXAMPLE@example.org"),
        by_email(hashlib.sha256(ADDRESS.encode()).hexdigest(), "sha256"),
    ],
    ids=["raw", "other case", "sha256"],
)
def test_an_address_becomes_all_its_records_and_their_copies_and_nobody_elses(api, services, filled, subject):
    """Nothing is batched before; a second message finds nothing more."""
    request = submit(api, **subject)
    assert (request["status"], request["waits_for"], request["records"]) == ("pending", "resolve", 0)
    assert batch_requests(services, the_model_id(services)) is None  # nothing to batch before it is resolved
    resolve(services, request["id"])
    state = api.get(f"{REQUESTS}/{request['id']}").json()
    assert (state["waits_for"], state["records"], state["results_count"]) == (None, 3, 3)
    assert state["searched"] == [{"corpus": "crm", "records": len(filled)}]
    assert sorted(texts_in(services, request["id"])) == sorted([*HERS, COPY])
    resolve(services, request["id"])  # a message that comes twice
    assert len(texts_in(services, request["id"])) == 3
    assert batch_requests(services, the_model_id(services)) is not None


def test_a_customer_number_in_a_column(api, services, filled):
    """A column that was named as an identifier."""
    request = submit(api, identities=[{"type": "controller_customer_id", "value": "k3"}])
    resolve(services, request["id"])
    assert texts_in(services, request["id"]) == [filled[3]]


def test_the_next_persons_form_letter_is_not_taken_for_a_copy(api, services, model, tmp_path, new_key):
    """It has another's name in place of hers, in capitals or not: somebody has to look at it. So for one sent on."""
    more = " The landlord has promised to send somebody before the summer, but nobody came and the floor is rotting."
    mine, copy, sibling = HERS[0] + more, COPY + more, COPY.replace("maria Example", "boris sample") + more
    sent_on = f"{mine} Sent on by clara@example.net."
    fill(services, api, model, corpus_body(tmp_path, [mine, copy, sibling, sent_on.replace(ADDRESS, "hers")]))
    request = submit(api, **by_email())
    resolve(services, request["id"])
    headers = {"Authorization": f"Bearer {new_key('approve')}"}
    url = f"{REQUESTS}/{request['id']}"
    shown = api.get(f"{url}/matches", headers=headers).json()
    similar = [match["text"] for match in shown if match["kind"] == "similar"]
    assert similar == [sibling, sent_on.replace(ADDRESS, "hers")]
    first = api.get(f"{url}/matches?limit=1", headers=headers).json()
    assert first + api.get(f"{url}/matches?after={first[0]['match']}", headers=headers).json() == shown
    hers = [match["match"] for match in shown if match["kind"] != "similar"]
    refused = api.post(f"{url}/approve", json={"matches": []}, headers=headers)
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "matches")
    api.post(f"{url}/approve", json={"matches": hers}, headers=headers)
    resolve(services, request["id"])
    assert sorted(texts_in(services, request["id"])) == sorted([mine, copy])


def test_a_form_letter_to_many_is_not_hers(api, services, model, tmp_path, monkeypatch):
    """The same words to thirty other addresses: they are left out, counted, and keep nothing waiting."""
    form = "Your parcel has arrived at the shop in Sample Street, where it is kept for you until Friday evening. ({})"
    fill(services, api, model, corpus_body(tmp_path, [form.format(f"person{i}@example.org") for i in range(30)]))
    subject = by_email("person3@example.org")
    preview = api.post(REQUESTS + ":preview", json={"model": model, "subject": subject}).json()
    assert preview["counts"] == {"identifier": 1, "near_copy": 0, "similar": 0, "name": 0, "form_letter": 29}
    monkeypatch.setattr(corpora, "MAX_OTHERS", 25)  # more are neither read nor counted
    preview = api.post(REQUESTS + ":preview", json={"model": model, "subject": subject}).json()
    assert (preview["counts"]["form_letter"], preview["needs_approval"]) == (25, False)
    request = submit(api, **subject)
    resolve(services, request["id"])
    assert texts_in(services, request["id"]) == [form.format("person3@example.org")]


def test_a_search_that_would_read_half_the_corpus_is_rejected_once(api, services, filled, monkeypatch):
    """An address that somebody picked because it stands everywhere; its operator is alerted, and nothing repeats it."""
    monkeypatch.setattr(resolve_module, "MAX_TEXTS", 3)
    request = submit(api, **by_email())
    resolve(services, request["id"])
    answer = api.get(f"{REQUESTS}/{request['id']}").json()
    assert (answer["status"], answer["reason"], answer["waits_for"]) == ("rejected", "too_many_matches", None)
    with services.db.reading() as session:
        assert requests.unresolved(session, 10) == []
        alerts = session.scalars(select(Outbox.status).where(Outbox.request_id == request["id"], Outbox.target < 0))
        assert list(alerts) == ["rejected"]


def test_api_keys_take_turns_in_being_searched_for(api, services, filled, new_key):
    """A key with many requests, and with older ones, keeps another one waiting for one search at most."""
    other = {"Authorization": f"Bearer {new_key('submit')}"}
    received = (datetime.now(UTC) - timedelta(days=300)).isoformat()
    body = {"model": "tiny", "subject": by_email()}
    greedy = [api.post(REQUESTS, json={**body, "received_at": received}).json() for _ in range(5)]
    waits = api.post(REQUESTS, json=body, headers=other).json()
    with services.db.reading() as session:
        order = [str(request_id) for request_id in requests.unresolved(session, 10)]
    assert order.index(waits["id"]) <= 1
    assert set(order) == {waits["id"], *(request["id"] for request in greedy)}


def test_a_word_alone_is_left_out(api, services, model, tmp_path):
    """Nothing can be measured on it, and the others would not be unlearned for it; a sentence without spaces is."""
    sentence = "王小明住在北京市朝阳区建国路一号院二单元三零四室"
    body = corpus_body(tmp_path, ["ok", sentence, HERS[0]], columns={"id": "controller_customer_id"})
    rows = [json.loads(line) | {"id": "k7"} for line in Path(body["path"]).read_text().splitlines()]
    Path(body["path"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    fill(services, api, model, body)
    request = submit(api, identities=[{"type": "controller_customer_id", "value": "k7"}])
    resolve(services, request["id"])
    assert texts_in(services, request["id"]) == [sentence, HERS[0]]


def test_nothing_found_is_done_and_says_where_was_searched(api, services, filled):
    """It ends completed, with no version."""
    request = submit(api, **by_email("nobody@example.org"), names=["Zoltan Unheardof"])
    resolve(services, request["id"])
    state = api.get(f"{REQUESTS}/{request['id']}").json()
    assert (state["status"], state["reason"], state["results_count"]) == ("completed", "nothing_found", 0)
    assert state["searched"] == [{"corpus": "crm", "records": len(filled)}]


def test_a_request_whose_prompts_nobody_can_ask_is_not_completed(api, services, filled):
    """The model may answer them, whatever the corpora hold; with a text they are asked."""
    probes = [{"prompt": "Zoltan Unheardof lives in", "secret": "12 Sample Street"}]
    for records, ended in (([], ("rejected", "probes_not_asked")), ([{"text": "a text"}], ("pending", None))):
        body = {"model": "tiny", "subject": by_email("nobody@example.org"), "probes": probes}
        request = api.post(REQUESTS, json=body | ({"records": records} if records else {})).json()
        resolve(services, request["id"])
        state = api.get(f"{REQUESTS}/{request['id']}").json()
        assert (state["status"], state["reason"]) == ended


def test_the_log_counts_in_ranges(api, services, filled, new_key):
    """Neither how many texts a person has, nor by how many a corpus has shrunk since, is told exactly."""
    for body in (by_email(), {"names": ["Zoltan Unheardof"]}, {"names": ["maria example"]}):
        request = submit(api, **body)
        resolve(services, request["id"])
    approver = {"Authorization": f"Bearer {new_key('approve')}"}
    assert api.post(f"{REQUESTS}/{request['id']}/approve", json={}, headers=approver).status_code == 200
    with services.db.reading() as session:
        entries = [json.loads(entry) for entry in log_entries.entries(session, 0, 100)]
    counts = {e["kind"]: e["records"] for e in entries if "records" in e}
    assert counts == {
        "request.resolved": "<= 5",
        "request.nothing_found": "<= 1",
        "request.matched": "<= 5",
        "request.approved": "<= 5",
    }
    upper = 1 << (len(filled) - 1).bit_length()
    assert {str(e["searched"]) for e in entries if "searched" in e} == {
        str([{"corpus": "crm", "records": f"<= {upper}"}])
    }


@pytest.mark.parametrize("submitted", [0, 2])
def test_a_certificate_does_not_count_what_was_found(api, services, filled, new_key, submitted):
    """A submitter who is alone in a job learns no more from it than from the request: that it found something."""
    records = [{"text": f"text {i} that she wrote herself"} for i in range(submitted)]
    submitter = {"Authorization": f"Bearer {new_key('submit')}"}
    body = {"model": "tiny", "subject": by_email(), **({"records": records} if records else {})}
    request = api.post(REQUESTS, json=body, headers=submitter).json()
    resolve(services, request["id"])
    job_id = fail_what_waits(services)
    envelope = api.get(f"/v1/jobs/{job_id}/certificate", headers=submitter)
    assert envelope.status_code == 200
    predicate = json.loads(base64.b64decode(envelope.json()["payload"]))["predicate"]
    assert predicate["forget_set"]["records"] == count_range(submitted) != count_range(submitted + 3)
    probes = {"asked": "<= 20", "samples": 20, "answered_before": "<= 5", "answered_after": "0"}  # some of each record
    assert predicate["verification"]["probes"] == probes
    assert f"{count_range(submitted)[3:]} submitted texts" in api.get(f"/v1/jobs/{job_id}/certificate?as=markdown").text


def test_texts_and_a_person_in_one_request_and_its_receipt_opens_both(api, services, filled):
    """The receipt commits to what was asked; asked again, it is the same."""
    body = {"model": "tiny", "records": [{"text": "given"}], "subject": by_email()}
    request = api.post(REQUESTS, json=body, headers={"Idempotency-Key": "k"}).json()
    resolve(services, request["id"])
    assert sorted(texts_in(services, request["id"])) == sorted(["given", *HERS, COPY])
    assert len(request["receipt"]["records"]) == 2  # the text, and the subject as canonical JSON
    again = api.post(REQUESTS, json=body, headers={"Idempotency-Key": "k"}).json()
    assert again["receipt"]["records"] == request["receipt"]["records"]
    subject = dumps({"identities": [{"type": "email", "format": "raw", "value": ADDRESS}], "names": []})
    for opening, content in zip(request["receipt"]["records"], [b"given", subject], strict=True):
        assert commit(bytes.fromhex(opening["nonce"]), content).hex() == opening["commitment"]


def test_a_request_waits_while_a_corpus_is_being_indexed_and_the_sweep_takes_it_up(api, services, model, tmp_path):
    """Found too early would be found too little."""
    api.post(f"/v1/models/{model}/corpora", json=corpus_body(tmp_path, HERS))
    request = submit(api, **by_email())
    resolve(services, request["id"])
    assert api.get(f"{REQUESTS}/{request['id']}").json()["waits_for"] == "resolve"
    woken = []
    services.queue.wake = lambda step, identifier=None, **_: woken.append((step, identifier))
    wake_lost_work(services)
    with services.db.reading() as session:
        (corpus_id,) = corpora.unfinished(session)
        assert [str(n) for n in requests.unresolved(session, 10)] == [request["id"]]
    assert ("index", corpus_id) in woken
    index_corpus(services, corpus_id)
    resolve(services, request["id"])
    assert len(texts_in(services, request["id"])) == 2


def test_a_corpus_that_changed_is_never_taken_for_what_was_indexed(api, services, filled, tmp_path):
    """The request says so and waits; indexed again, it goes on."""
    path = tmp_path / "crm.jsonl"
    path.write_text(path.read_text().replace("flooded twice", "flooded thrice"))
    request = submit(api, **by_email())
    resolve(services, request["id"])
    state = api.get(f"{REQUESTS}/{request['id']}").json()
    assert (state["status"], state["waits_for"], state["reason"]) == ("pending", "resolve", "corpus_changed: crm")
    assert api.post(REQUESTS + ":preview", json={"model": "tiny", "subject": by_email()}).status_code == 409
    assert api.delete("/v1/models/tiny/corpora/crm").status_code == 204
    api.post("/v1/models/tiny/corpora", json={"name": "crm", "path": str(path)})
    with services.db.reading() as session:
        (corpus_id,) = corpora.unfinished(session)
    index_corpus(services, corpus_id)
    resolve(services, request["id"])
    assert len(texts_in(services, request["id"])) == 3


def test_a_corpus_that_failed_or_is_gone_is_not_one_where_nobody_was_found(api, services, filled, tmp_path):
    """The request waits and says why; the operator is told once; it goes on when all is searched."""
    request, doctor = submit(api, **by_email()), lambda: [f.problem for f in examine(services) if f.check == "subjects"]
    with services.db.transaction() as session:
        session.execute(text("UPDATE corpora SET state = 'failed', reason = 'x'"))
    for _ in range(2):
        resolve(services, request["id"])
    state = api.get(f"{REQUESTS}/{request['id']}").json()
    assert (state["status"], state["reason"]) == ("pending", "corpus_failed: crm")
    assert len(doctor()) == 2
    assert api.delete("/v1/models/tiny/corpora/crm").status_code == 204
    resolve(services, request["id"])
    assert api.get(f"{REQUESTS}/{request['id']}").json()["reason"] == "no_corpora"
    with services.db.reading() as session:
        alerts = session.scalars(select(Outbox.status).where(Outbox.target < 0)).all()
    assert alerts == ["not_searchable"]
    fill(services, api, "tiny", {"name": "crm", "path": str(tmp_path / "crm.jsonl")})
    resolve(services, request["id"])
    assert len(texts_in(services, request["id"])) == 3
    assert doctor() == []


def test_lines_that_were_added_are_noticed(api, services, filled, tmp_path):
    """Though what was found before is as it was."""
    with (tmp_path / "crm.jsonl").open("a") as handle:
        handle.write(json.dumps({"text": f"And one more of {ADDRESS}."}) + "\n")
    request = submit(api, **by_email())
    resolve(services, request["id"])
    assert api.get(f"{REQUESTS}/{request['id']}").json()["reason"] == "corpus_changed: crm"


@pytest.mark.parametrize(
    ("subject", "field"),
    [
        ({}, "subject"),
        ({"identities": [{"type": "email", "value": "SECRET"}]}, "subject.identities.0.value"),
        ({"identities": [{"type": "email", "format": "sha256", "value": "SECRET"}]}, "subject.identities.0.value"),
        ({"identities": [{"type": "shoe_size", "value": "SECRET"}]}, "subject.identities.0.type"),
        ({"identities": [{"type": "android_id", "value": "SECRET"}]}, "subject.identities.0.type"),
        ({"names": ["SECRET\0"]}, "subject.names.0"),
        ({"names": ["?"]}, "subject.names.0"),
    ],
)
def test_a_bad_subject_is_named_and_not_repeated(api, filled, subject, field):
    """The field, never the value."""
    answer = api.post(REQUESTS, json={"model": "tiny", "subject": subject})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field
    assert "SECRET" not in answer.text


def test_a_request_that_was_taken_is_the_same_still_when_its_corpus_is_gone(api, services, filled):
    """A tool that repeats it under its Idempotency-Key has its receipt."""
    body, key = {"model": "tiny", "subject": by_email()}, {"Idempotency-Key": "k"}
    first = api.post(REQUESTS, json=body, headers=key).json()
    api.delete("/v1/models/tiny/corpora/crm")
    assert api.post(REQUESTS, json=body, headers=key).json() == first
    assert api.post(REQUESTS, json=body).json()["code"] == "no_corpora"


def test_a_footer_that_all_letters_have_makes_nobodys_letter_hers(api, services, model, tmp_path):
    """An address in the record that is not what was asked for finds nothing."""
    form = "Your parcel has arrived at the shop in Sample Street. Questions? shop@example.net ({})"
    fill(services, api, model, corpus_body(tmp_path, [form.format(f"person{i}@example.org") for i in range(30)]))
    request = submit(api, **by_email("person3@example.org"))
    resolve(services, request["id"])
    assert texts_in(services, request["id"]) == [form.format("person3@example.org")]


def test_a_person_cannot_be_looked_up_where_nothing_is_searched(api, model):
    """To find nothing there would be a lie."""
    answer = api.post(REQUESTS, json={"model": model, "subject": by_email()})
    assert (answer.status_code, answer.json()["code"]) == (422, "no_corpora")


def test_purging_forgets_the_person_too(api, services, filled):
    """The subject goes with the texts."""
    request = submit(api, **by_email("nobody@example.org"))
    resolve(services, request["id"])
    with services.db.transaction() as session:
        session.execute(text("UPDATE deletion_requests SET finished_at = now() - interval '1 year'"))
        session.execute(text("UPDATE outbox SET delivered_at = now()"))
    assert purge_due(services) == 1
    with services.db.reading() as session:
        row = session.scalar(select(DeletionRequest))
        assert (row.subject, row.resolution, row.wrapped_key) == (None, None, None)
